"""`baton replan`: what would change, why, and whether it has."""

import json

import pytest
import typer
from typer.testing import CliRunner

from cli.replan import Change, changes, replan
from core.plan import Plan, parse_plan
from rpc.pb.controller_pb2 import ReplanReply
from tests.cli.conftest import FakeCluster
from tests.cli.fake_cluster import PLAN, cluster_state

app = typer.Typer()
app.command()(replan)
runner = CliRunner()

MORE = "[prefill]\nreplicas = 2\n[decode]\nreplicas = 1\n[decode.layout]\ntp = 2\n"
MIXED = "[mixed]\nreplicas = 3\n[prefill]\nreplicas = 0\n[decode]\nreplicas = 0\n"


def run(*arguments: str, exit_code: int = 0) -> str:
    result = runner.invoke(app, arguments)
    assert result.exit_code == exit_code, result.output
    return result.output


def scripted(cluster: FakeCluster, reply: ReplanReply, in_force: str = PLAN) -> None:
    cluster.script.watches = [[cluster_state([], plan_toml=in_force)]]
    cluster.script.replan = reply


CHANGES = [
    # id, before, after, want (role, before, after)
    (
        "the same",
        PLAN,
        PLAN,
        [("prefill", "1 of 1x1", "1 of 1x1"), ("decode", "1 of 1x1", "1 of 1x1")],
    ),
    (
        "more and larger ones",
        PLAN,
        MORE,
        [("prefill", "1 of 1x1", "2 of 1x1"), ("decode", "1 of 1x1", "1 of 2x1")],
    ),
    (
        "another kind",
        PLAN,
        MIXED,
        [
            ("prefill", "1 of 1x1", "none"),
            ("decode", "1 of 1x1", "none"),
            ("mixed", "none", "3 of 1x1"),
        ],
    ),
    ("the first one", None, MIXED, [("mixed", "none", "3 of 1x1")]),
]


@pytest.mark.parametrize(
    ("before", "after", "want"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES]
)
def test_changes(before: str | None, after: str, want: list[tuple[str, str, str]]) -> None:
    got = changes(parse_plan(before) if before is not None else None, parse_plan(after))
    routers = Change(role="router", before="none" if before is None else "1", after="1")
    assert got == [*(Change(role=r, before=b, after=a) for r, b, a in want), routers]


def test_every_pool_of_a_plan_is_named() -> None:
    roles = {change.role for change in changes(parse_plan(MIXED), parse_plan(PLAN))}
    assert roles == {*(role.value for role in Plan().pools), "router"}


def test_it_is_put_in_force(cluster: FakeCluster) -> None:
    reply = ReplanReply(plan_toml=MORE, reasons=["rate 4 → 9 per s [bold]"], applied=True)
    scripted(cluster, reply)
    output = run()
    for words in ("rate 4 → 9 per s [bold]", "put in force: `baton top`"):
        assert words in output
    rows = [line.split() for line in output.splitlines()]
    assert ["prefill", "1", "of", "1x1", "2", "of", "1x1", "changes"] in rows
    assert ["router", "1", "1"] in rows
    assert [request.dry_run for request in cluster.script.asked] == [False]


def test_a_dry_run_says_how_to_go_on(cluster: FakeCluster) -> None:
    scripted(cluster, ReplanReply(plan_toml=MORE))
    assert "without --dry-run" in run("--dry-run")
    assert [request.dry_run for request in cluster.script.asked] == [True]


def test_nothing_better(cluster: FakeCluster) -> None:
    scripted(cluster, ReplanReply(reasons=["12 requests of late: too few"]))
    output = run()
    assert "too few" in output
    assert "the plan stays as it is" in output


def test_json(cluster: FakeCluster) -> None:
    scripted(cluster, ReplanReply(plan_toml=MORE, reasons=["why"], applied=True))
    assert json.loads(run("--json")) == {
        "applied": True,
        "reasons": ["why"],
        "plan_in_force": PLAN,
        "plan_proposed": MORE,
    }


UNREADABLE = ["prefill = ", "[prefill]\nreplicas = 1\nof_a_newer_version = true\n"]


@pytest.mark.parametrize("text", UNREADABLE, ids=["no TOML", "unknown key"])
def test_a_plan_that_cannot_be_read_is_an_error(cluster: FakeCluster, text: str) -> None:
    scripted(cluster, ReplanReply(plan_toml=text))
    assert "CONFIG_ERROR" in run(exit_code=1)


def test_nobody_leads(cluster: FakeCluster) -> None:
    cluster.store.leader = None
    assert "NO_CONTROLLER" in run(exit_code=1)
