"""`baton top`: what it draws of any moment, and that it outlives its controller."""

import asyncio
import io
import json
import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from cli import running
from cli import top as top_module
from cli.controller import NoController
from cli.running import ClusterNote
from cli.top import top
from cli.top_picture import Pace, RouterSeen, View, picture
from cli.top_sight import Counted, Sight, counters, paces
from core.clock import ManualClock
from core.errors import Draining
from registry.memory import MemoryStore
from rpc.pb.cluster_pb2 import InstanceStatus, StatusReply
from rpc.pb.controller_pb2 import ClusterState
from tests.cli.conftest import FakeCluster
from tests.cli.fake_cluster import (
    Script,
    cluster_state,
    event,
    instance_status,
    member,
    online,
    serving,
)

app = typer.Typer()
app.command()(top)
runner = CliRunner()


def drawn(view: View, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    console.print(picture(view))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return lines


def whole(**given: Any) -> View:
    members = [
        member("prefill-a"),
        member("decode-a", "starting", in_state_s=4.0),
        member("router-0", address="10.0.0.1:5000"),
    ]
    state = cluster_state(members, events=[event(0)], online=online(), waits_for=["decode: 0 of 1"])
    reply = StatusReply(
        num_requests=5, num_queued=2, instances=[instance_status("prefill-a")], http_address="h:80"
    )
    fields = {
        "state": state,
        "routers": [RouterSeen(address="10.0.0.1:5000", reply=reply)],
        "paces": {"prefill-a": Pace(1234.0, 56.7)},
        **given,
    }
    return View(**fields)


def test_all_of_it() -> None:
    lines = drawn(whole())
    assert lines[:2] == ["cluster one: plan edition 3, not settled", "  waits for decode: 0 of 1"]
    text = "\n".join(lines)
    for words in ("online: 4.25 requests/s of 512 prompt and 128 output", "97% of 300", "stays:"):
        assert words in " ".join(text.split())
    rows = {line.split()[0]: line for line in lines if line.strip()}
    for words in ("serving", "██░░░  40%", "1,234", "56.7"):
        assert words in rows["prefill-a"]
    assert rows["decode-a"].split()[2:5] == ["starting", "4", "s"]
    assert rows["router-0"].split()[-3:] == ["h:80", "5", "2"]
    assert "event 0 [bold]" in text


def test_states_grow_older_while_nothing_is_heard() -> None:
    lines = drawn(whole(state_age_s=3600.0, trouble="controller restarting: gone"))
    assert "controller restarting: gone" in lines
    assert any("starting 1.0 h" in line for line in lines)


WITHOUT_A_CONTROLLER = [
    # id, instance, its state
    ("works", instance_status("prefill-a"), "serving"),
    ("link is down", instance_status("prefill-a", connected=False), "lost"),
]


@pytest.mark.parametrize(
    ("status", "word"), [c[1:] for c in WITHOUT_A_CONTROLLER], ids=lambda c: str(c)[:9]
)
def test_the_routers_word_is_enough(status: InstanceStatus, word: str) -> None:
    router = RouterSeen(address="h:1", reply=StatusReply(instances=[status]))
    lines = drawn(View(state=None, routers=[router]))
    assert any(line.split()[:3] == ["prefill-a", "prefill", word] for line in lines)
    assert any("h:1" in line for line in lines)


def test_the_router_with_a_link_is_believed() -> None:
    down = StatusReply(instances=[instance_status("prefill-a", connected=False)])
    up = StatusReply(instances=[instance_status("prefill-a")])
    for replies in ([down, up], [up, down]):
        routers = [RouterSeen(address=f"h:{i}", reply=r) for i, r in enumerate(replies)]
        assert any(
            line.split()[:3] == ["prefill-a", "prefill", "serving"]
            for line in drawn(View(state=None, routers=routers))
        )


SPARSE = [
    ("nothing", View(state=None)),
    ("an empty cluster", View(state=ClusterState())),
    ("unknown role and state", View(state=ClusterState(members=[{"name": "x", "role": 77}]))),  # type: ignore[list-item]
    (
        "an instance without blocks",
        View(
            state=None,
            routers=[
                RouterSeen(
                    address="h:1", reply=StatusReply(instances=[InstanceStatus(instance_id="x")])
                )
            ],
        ),
    ),
    ("silent routers", View(state=None, routers=[RouterSeen(address="", reply=None, trouble="?")])),
]


@pytest.mark.parametrize("view", [c[1] for c in SPARSE], ids=[c[0] for c in SPARSE])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_any_moment_and_any_terminal(view: View, width: int) -> None:
    assert drawn(view, width)
    assert drawn(whole(), width)


PACES = [
    # id, before, now, want
    ("two readings", (10.0, 100, 5), (12.0, 300, 10), Pace(100.0, 2.5)),
    ("idle", (10.0, 100, 5), (12.0, 100, 5), Pace(0.0, 0.0)),
    ("first seen", None, (12.0, 300, 10), None),
    ("started anew", (10.0, 100, 5), (12.0, 0, 1), None),
    ("at the same moment", (12.0, 100, 5), (12.0, 300, 10), None),
]


@pytest.mark.parametrize(
    ("before", "now", "want"), [c[1:] for c in PACES], ids=[c[0] for c in PACES]
)
def test_paces(
    before: tuple[float, int, int] | None, now: tuple[float, int, int], want: Pace | None
) -> None:
    found = paces({"a": Counted(*before)} if before else {}, {"a": Counted(*now)})
    assert found == ({"a": want} if want else {})


def test_an_instance_without_books_has_no_pace() -> None:
    blind = InstanceStatus(instance_id="x")
    assert counters([RouterSeen(address="h:1", reply=StatusReply(instances=[blind]))], 0.0) == {}


async def no_routers() -> tuple[str, ...]:
    return ()


async def until_heard(sight: Sight, what: str) -> View:
    """Look until it is there, as the command does, but without its pauses."""
    async with asyncio.timeout(20):
        while what not in "\n".join(drawn(view := await sight.look())):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return view


async def test_paces_come_with_the_second_look() -> None:
    script, clock = Script(), ManualClock()
    script.status = StatusReply(instances=[instance_status("prefill-a")])
    async with serving(script) as address:

        async def routers() -> tuple[str, ...]:
            return (address,)

        sight = Sight(None, routers, clock)
        assert (await sight.look()).paces == {}
        clock.advance(2.0)
        again = instance_status("prefill-a", num_queried_tokens=64, num_steps=8)
        script.status = StatusReply(instances=[again])
        assert (await sight.look()).paces == {"prefill-a": Pace(32.0, 4.0)}


async def test_it_outlives_its_controller() -> None:
    first = Script(watches=[[cluster_state([member("prefill-a")])]])
    second = Script(watches=[[cluster_state([member("prefill-b")], term=8)]])
    where: list[str] = []

    async def find() -> str:
        if not where:
            raise NoController("nobody leads")
        return where[-1]

    sight = Sight(find, no_routers, ManualClock())
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(sight.watch())
        async with serving(first) as address:
            where.append(address)
            assert (await until_heard(sight, "prefill-a")).trouble == ""
            where.clear()
        view = await until_heard(sight, "controller restarting")
        assert view.state is not None, "the last state is shown on"
        async with serving(second) as address:
            where.append(address)
            assert (await until_heard(sight, "prefill-b")).trouble == ""
            watching.cancel()


async def test_a_router_that_fails_is_said_to() -> None:
    script = Script(status=Draining("not now"))
    async with serving(script) as address:
        state = cluster_state([member("router-0", address=address)])
        script.watches = [[state]]

        async def find() -> str:
            return address

        sight = Sight(find, no_routers, ManualClock())
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(sight.watch())
            await sight.heard.wait()
            view = await sight.look()
            watching.cancel()
    assert [router.trouble for router in view.routers] == ["DRAINING"]


def busy(cluster: FakeCluster) -> None:
    members = [member("prefill-a"), member("router-0", address=cluster.address)]
    cluster.script.watches = [[cluster_state(members)]]
    cluster.script.status = StatusReply(num_requests=5, instances=[instance_status("prefill-a")])


def test_once(cluster: FakeCluster) -> None:
    busy(cluster)
    result = runner.invoke(app, ["--once"])
    assert result.exit_code == 0, result.output
    for words in ("cluster one: plan edition 3, settled", "prefill-a", "40%", cluster.address):
        assert words in result.output


def test_once_as_json_is_one_line(cluster: FakeCluster) -> None:
    busy(cluster)
    result = runner.invoke(app, ["--once", "--json"])
    (line,) = result.stdout.splitlines()
    document = json.loads(line)
    assert document["controller"]["edition"] == "3"
    assert document["routers"][0]["status"]["num_requests"] == 5
    assert document["paces"] == {}


def test_once_of_a_served_cluster(cluster: FakeCluster) -> None:
    busy(cluster)
    running.write_note(ClusterNote(name="served", routers=(cluster.address,), http=()))
    result = runner.invoke(app, ["--once", "--name", "served"])
    assert result.exit_code == 0, result.output
    assert "edition" not in result.output
    assert "prefill-a" in result.output


def test_once_with_nobody_there(store: MemoryStore, cluster: FakeCluster) -> None:
    cluster.script.status = Draining("not now")
    store.leader = None
    result = runner.invoke(app, ["--once"])
    assert result.exit_code == 1
    assert "NOBODY_ANSWERS: controller restarting: nobody leads cluster one" in result.output


def test_no_cluster() -> None:
    result = runner.invoke(app, ["--once"])
    assert result.exit_code == 1
    assert "baton up" in result.output


@pytest.mark.parametrize("arguments", [["--json"], []], ids=["json", "text"])
def test_ctrl_c_ends_it_well(
    cluster: FakeCluster, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy(cluster)
    shown = {"_write_json": [0], "_print": [0]}

    def draw(name: str, before: Callable[..., None], *given: Any) -> None:
        before(*given)
        shown[name][0] += 1
        if shown[name][0] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    for name in shown:
        monkeypatch.setattr(top_module, name, partial(draw, name, getattr(top_module, name)))
    monkeypatch.setattr(top_module, "REFRESH_S", 0.0)
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "Traceback" not in result.output
    assert result.stdout.count("prefill-a") >= 2


async def test_the_live_picture_is_redrawn(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy(cluster)
    monkeypatch.setattr(top_module, "REFRESH_S", 0.0)
    console = Console(file=io.StringIO(), width=80, height=40, force_terminal=True)
    assert isinstance(console.file, io.StringIO)
    sight = top_module._sight(None, None)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        live = group.create_task(top_module._live(sight, console))
        while console.file.getvalue().count("prefill-a") < 3:  # noqa: ASYNC110 - rich tells nobody
            await asyncio.sleep(0.01)
        live.cancel()
    assert "Ctrl-C ends" in console.file.getvalue()
