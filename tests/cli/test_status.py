"""`baton status`: the controller's view and the router's, each without the other too."""

import json
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli import running
from cli.pictures import age
from cli.running import ClusterNote
from cli.status import status
from core.errors import Draining
from registry.memory import MemoryStore
from rpc.pb.cluster_pb2 import StatusReply
from tests.cli.conftest import FakeCluster
from tests.cli.fake_cluster import cluster_state, event, instance_status, member

app = typer.Typer()
app.command()(status)
runner = CliRunner()


def shown(*arguments: str, exit_code: int = 0) -> str:
    result = runner.invoke(app, arguments)
    assert result.exit_code == exit_code, result.output
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    return result.output


def busy(cluster: FakeCluster, **given: Any) -> None:
    """A router that serves, and every state a member may be in."""
    members = [
        member("prefill-a"),
        member("prefill-b", "starting", in_state_s=4.0, host="10.0.0.2"),
        member("decode-a", "draining"),
        member("decode-b", "lost", in_state_s=7200.0),
        member("router-0", address=cluster.address, http_address="10.0.0.1:8000"),
    ]
    events = [event(n, "prefill-b" if n % 2 else "") for n in range(7)]
    cluster.script.watches = [[cluster_state(members, events=events, **given)]]
    cluster.script.status = StatusReply(num_requests=5, instances=[instance_status("prefill-a")])


def test_both_views(cluster: FakeCluster) -> None:
    busy(cluster, waits_for=["prefill: 1 of 2 serve", "decode: 0 of 1 serve"])
    lines = shown().splitlines()
    assert lines[0] == "cluster one: plan edition 3, not settled"
    assert "  waits for prefill: 1 of 2 serve" in lines
    by_name = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert by_name["prefill-b"][:6] == ["prefill-b", "prefill", "starting", "4", "s", "10.0.0.2"]
    assert by_name["decode-a"][2:5] == ["draining", "1", "min"]
    assert by_name["decode-b"][2:5] == ["lost", "2.0", "h"]
    assert by_name["router-0"][-1] == "10.0.0.1:8000"
    assert any("5 requests running" in line for line in lines)
    assert any("40/100" in line for line in lines), "the router's columns are as ever"


def test_the_last_five_events_word_for_word(cluster: FakeCluster) -> None:
    busy(cluster)
    output = shown()
    assert "cluster one: plan edition 3, settled" in output
    assert "event 1 [bold]" not in output
    assert [line.split()[0] for line in output.splitlines() if "[bold]" in line] == [
        f"12:0{n}:00" for n in range(2, 7)
    ]


def test_both_documents(cluster: FakeCluster) -> None:
    busy(cluster)
    document = json.loads(shown("--json"))
    assert document["num_requests"] == 5
    assert document["controller"]["cluster"] == "one"
    assert len(document["controller"]["events"]) == 7


def test_an_address_asks_the_router_alone(cluster: FakeCluster) -> None:
    busy(cluster)
    output = shown("--address", cluster.address)
    assert "edition" not in output
    assert "prefill-a" in output
    assert "controller" not in json.loads(shown("--address", cluster.address, "--json"))


def test_a_served_cluster_has_the_routers_view_alone(cluster: FakeCluster) -> None:
    busy(cluster)
    running.write_note(ClusterNote(name="served", routers=(cluster.address,), http=()))
    output = shown("--name", "served")
    assert "edition" not in output
    assert "controller" not in output
    assert "prefill-a" in output


def test_nobody_leads(store: MemoryStore, cluster: FakeCluster) -> None:
    busy(cluster)
    store.leader = None
    output = shown()
    assert "the router's view only: nobody leads cluster one" in output
    assert "prefill-a" in output
    result = runner.invoke(app, ["--json"])
    assert "controller" not in json.loads(result.stdout)
    assert "nobody leads" in result.stderr


def test_the_controller_says_an_error(cluster: FakeCluster) -> None:
    busy(cluster)
    cluster.script.watches = [[Draining("it ends")]]
    assert "the router's view only: it ends" in shown()


def test_the_store_is_away(store: MemoryStore, cluster: FakeCluster) -> None:
    busy(cluster)
    store.set_reachable(False)
    assert "the router's view only: memory store" in shown()


def test_no_router_serves_yet(cluster: FakeCluster) -> None:
    cluster.script.watches = [[cluster_state([member("router-0", "starting")])]]
    output = shown()
    assert "no router serves yet" in output
    assert "starting" in output


def test_no_router_answers(cluster: FakeCluster) -> None:
    busy(cluster)
    cluster.script.status = Draining("not now")
    output = shown()
    assert f"router {cluster.address}: not now" in output
    assert "cluster one" in output


def test_nobody_answers(store: MemoryStore, cluster: FakeCluster) -> None:
    busy(cluster)
    store.leader = None
    cluster.script.status = Draining("not now")
    output = " ".join(shown(exit_code=1).split())
    assert output.startswith("NOBODY_ANSWERS: nobody leads cluster one")
    assert f"router {cluster.address}: not now; if the cluster has ended, start one" in output


REFUSED = [
    ("no such cluster", ["--name", "two"], "there is one"),
    ("bad address", ["--address", "nonsense"], "host:port"),
]


@pytest.mark.parametrize(
    ("arguments", "named"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_refused(cluster: FakeCluster, arguments: list[str], named: str) -> None:
    assert named in shown(*arguments, exit_code=1)


def test_a_damaged_note_is_one_line(cluster: FakeCluster) -> None:
    path = running.write_note(running.read_note())
    path.write_text("{}")
    assert "NOTE_DAMAGED" in shown(exit_code=1)


AGES = [
    *((-1.0, "0 s"), (0.0, "0 s"), (59.4, "59 s"), (75.0, "1 min"), (3599.0, "60 min")),
    *((3600.0, "1.0 h"), (9000.0, "2.5 h"), (86_400.0, "1.0 d"), (1e7, "115.7 d")),
]


@pytest.mark.parametrize(("duration_s", "text"), AGES)
def test_ages_are_for_people(duration_s: float, text: str) -> None:
    assert age(duration_s) == text


def test_help_is_for_newcomers() -> None:
    output = runner.invoke(app, ["--help"]).output
    for word in ("--name", "--address", "--json", "baton up"):
        assert word in output
