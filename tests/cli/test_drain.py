"""`baton drain`: over when the old one is gone and another one serves, and not before."""

import asyncio
import os
import signal
from collections.abc import Sequence

import pytest
import typer
from typer.testing import CliRunner

from cli import drain as drain_module
from cli.controller import NoController
from cli.drain import Farewell, NotReplaced, UnknownMember, Waiting, drain, member_of
from core.clock import ManualClock
from core.errors import BatonError, WrongState
from rpc.pb import types_pb2
from rpc.pb.controller_pb2 import ClusterState, MemberState
from tests.cli.conftest import FakeCluster
from tests.cli.fake_cluster import Script, cluster_state, member, serving

app = typer.Typer()
app.command()(drain)
runner = CliRunner()

BEFORE = cluster_state([member("prefill-a"), member("prefill-b"), member("decode-a")])
LEAVING = Farewell(
    instance="prefill-a",
    actor_id="actor-of-prefill-a",
    role=types_pb2.ROLE_PREFILL,
    num_serving=2,
)
OTHER = (member("prefill-b"), member("decode-a"))
LACKS = {"waits_for": ["prefill: 1 of 2 serve"]}
STATES = [
    # id, state, whether it is over, words
    ("as before", BEFORE, False, "prefill-a is serving"),
    (
        "drains",
        cluster_state([member("prefill-a", "draining"), *OTHER], **LACKS),
        False,
        "prefill-a is draining",
    ),
    (
        "drains beside its successor",
        cluster_state([member("prefill-a", "draining"), member("prefill-c"), *OTHER]),
        False,
        "prefill-a is draining",
    ),
    ("gone", cluster_state(OTHER, **LACKS), False, "prefill-a is gone; prefill: 1 of 2 serve"),
    (
        "its successor starts",
        cluster_state([member("prefill-c", "starting"), *OTHER], settled=False),
        False,
        "prefill-a is gone; its successor is started",
    ),
    ("replaced", cluster_state([member("prefill-c"), *OTHER]), True, ""),
    (
        "replaced while the rest is not settled",
        cluster_state([member("prefill-c"), member("prefill-b")], waits_for=["decode: 0 of 1"]),
        True,
        "",
    ),
    ("fewer are wanted now", cluster_state(OTHER), True, ""),
    (
        "its name serves in another actor, as routers' do",
        cluster_state([member("prefill-a", actor_id="another"), *OTHER]),
        True,
        "",
    ),
]


@pytest.mark.parametrize(
    ("state", "is_over", "words"), [c[1:] for c in STATES], ids=[c[0] for c in STATES]
)
def test_when_it_is_over(state: ClusterState, is_over: bool, words: str) -> None:
    assert LEAVING.is_over(state) == is_over
    assert is_over or LEAVING.words(state) == words


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(UnknownMember, match="there is decode-a, prefill-a, prefill-b"):
        member_of(BEFORE.members, "prefill-z")
    with pytest.raises(UnknownMember, match="there is nobody"):
        member_of([], "prefill-a")


async def follow(
    *watches: Sequence[ClusterState | BatonError], limit_s: float = 20.0
) -> list[tuple[str, float]]:
    told: list[tuple[str, float]] = []
    script = Script(watches=[list(watch) for watch in watches], ends_watches=len(watches) > 1)
    async with serving(script) as address:

        async def find() -> str:
            return address

        waiting = Waiting(LEAVING, ManualClock(), lambda words, s: told.append((words, s)))
        await waiting.until_replaced(find, limit_s)
    return told


DONE = cluster_state([member("prefill-c"), *OTHER])


async def test_it_is_followed_to_its_end() -> None:
    drains = cluster_state([member("prefill-a", "draining"), *OTHER], **LACKS)
    told = await follow([BEFORE, drains, cluster_state(OTHER, **LACKS), DONE])
    assert told[0] == ("prefill-a drains", 0.0)


async def test_a_restarted_controller_is_found_again() -> None:
    # The first stream ends, as that of a controller which dies; the next one is of another.
    told = await follow([BEFORE], [DONE])
    assert any("controller restarting" in words for words, _ in told)


async def test_the_wait_is_bounded() -> None:
    with pytest.raises(NotReplaced, match=r"prefill-a is serving after 0\.3 s: see `baton status`"):
        await follow([BEFORE], limit_s=0.3)


async def test_what_another_try_does_not_mend_ends_the_wait() -> None:
    async def find() -> str:
        raise WrongState("no such thing")

    with pytest.raises(ExceptionGroup) as caught:
        await Waiting(LEAVING, ManualClock(), lambda *_: None).until_replaced(find, 20.0)
    assert caught.group_contains(WrongState)


def run(*arguments: str, exit_code: int = 0) -> str:
    result = runner.invoke(app, arguments)
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    return result.output


def drains_well(cluster: FakeCluster, *after: MemberState) -> None:
    """Asked twice for its state: before the drain, and while it is waited for."""
    state = cluster_state([*after, *OTHER])
    cluster.script.watches = [[BEFORE], [BEFORE, cluster_state(OTHER, **LACKS), state]]


def test_a_whole_drain(cluster: FakeCluster) -> None:
    drains_well(cluster, member("prefill-c"))
    output = run("prefill-a", "--timeout-s", "5")
    assert "prefill-a drains, 0 s" in output
    assert "prefill-a is gone, and another one serves in its place" in output
    (request,) = cluster.script.asked
    assert (request.name, request.timeout_s) == ("prefill-a", 5.0)


def test_without_waiting(cluster: FakeCluster) -> None:
    cluster.script.watches = [[BEFORE]]
    assert "prefill-a drains: see `baton status`" in run("prefill-a", "--no-wait")
    assert [request.timeout_s for request in cluster.script.asked] == [30.0]


def test_an_unknown_name_asks_for_nothing(cluster: FakeCluster) -> None:
    cluster.script.watches = [[BEFORE]]
    output = run("prefill-z", exit_code=1)
    assert "UNKNOWN_MEMBER: no instance or router prefill-z; there is decode-a" in output
    assert cluster.script.asked == []


def test_nobody_leads(cluster: FakeCluster) -> None:
    cluster.store.leader = None
    assert "NO_CONTROLLER: nobody leads cluster one" in run("prefill-a", exit_code=1)
    assert NoController.retryable


BAD = [["prefill-a", "--timeout-s", "-1"], ["prefill-a", "--timeout-s", "86401"], []]


@pytest.mark.parametrize("arguments", BAD, ids=["negative", "more than a day", "nobody"])
def test_bad_input(arguments: list[str]) -> None:
    run(*arguments, exit_code=2)


def test_ctrl_c_ends_the_watching_alone(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.script.watches = [[BEFORE]]
    really = drain_module.Waiting._tick

    async def interrupt(self: Waiting, start_s: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await really(self, start_s)

    monkeypatch.setattr(drain_module.Waiting, "_tick", interrupt)
    assert "prefill-a drains on: see `baton status`" in run("prefill-a", exit_code=130)


def test_a_group_of_errors_is_one_line(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.script.watches = [[BEFORE]]

    async def fails(self: Waiting, start_s: float) -> None:
        await asyncio.sleep(0)
        raise WrongState("[not] now")

    monkeypatch.setattr(drain_module.Waiting, "_tick", fails)
    assert "WRONG_STATE: [not] now" in run("prefill-a", exit_code=1)
