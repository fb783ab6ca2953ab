"""The Controller service over gRPC: what it is asked, what it answers, what it refuses."""

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio
import pytest

from core.clock import MonotonicClock
from core.member import Role
from deploy.controller.deployment import Deployment
from deploy.controller.seen import MemberState
from deploy.controller.service import DEFAULT_LOG_BYTES, MAX_LOG_BYTES, ControllerService
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import controller_pb2, controller_pb2_grpc, types_pb2
from rpc.serve import bind, build
from tests.deploy.controller.stage import FakeHands, Stage, deployed
from tests.deploy.controller.world import member

CALL_S = 10.0


class Idle:
    """In the place of online planning."""

    def __init__(self) -> None:
        self.seen: controller_pb2.OnlineState | None = None

    def state(self) -> controller_pb2.OnlineState | None:
        return self.seen

    async def replan(self, *, dry_run: bool) -> controller_pb2.ReplanReply:
        return controller_pb2.ReplanReply(reasons=[f"dry_run: {dry_run}"])


@dataclass
class Served:
    """A service whose controller does not run: what is asked of it is seen undisturbed."""

    stage: Stage
    online: Idle
    stub: Any

    async def put(self, deployment: Deployment, *, dry_run: bool = False) -> Any:  # noqa: ANN401
        request = controller_pb2.DeployRequest(
            deployment_json=deployment.to_json(), dry_run=dry_run
        )
        return await self.stub.Deploy(request, timeout=CALL_S)

    async def refused(self, method: str, request: object) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(self.stub, method)(request, timeout=CALL_S)
        return caught.value.code(), caught.value.details() or ""


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    clock = MonotonicClock()
    stage, online = Stage(clock, FakeHands({"a": 4.0, "b": 4.0}, load_s=0.0)), Idle()
    service = ControllerService("mine", stage.controller, online, clock)  # type: ignore[arg-type]
    server = await build(Plane.CLIENT, ())
    controller_pb2_grpc.add_ControllerServicer_to_server(service, server.grpc)
    port = bind(server, "127.0.0.1:0")
    await server.grpc.start()
    try:
        async with dial(f"127.0.0.1:{port}", plane=Plane.CLIENT) as channel:
            yield Served(stage, online, controller_pb2_grpc.ControllerStub(channel))
    finally:
        await server.grpc.stop(grace=None)


# --- Deploy -----------------------------------------------------------------------------------


async def test_deploy_tells_what_it_begins() -> None:
    async with serving() as served:
        first = await served.put(deployed(1, 1))
        starts = ["start a prefill instance", "start a decode instance", "start router-0"]
        assert (first.edition, list(first.changes)) == (1, starts)
        assert served.stage.controller.record is not None
        assert served.stage.controller.record.deployment == deployed(1, 1)
        assert (await served.put(deployed(1, 1))).edition == 1
        assert (await served.put(deployed(2, 1))).edition == 2


async def test_a_dry_run_changes_nothing() -> None:
    async with serving() as served:
        reply = await served.put(deployed(1, 1), dry_run=True)
        assert (reply.edition, len(reply.changes)) == (0, 3)
        assert served.stage.controller.record is None
        await served.put(deployed(1, 1))
        before, kept = served.stage.controller.record, list(served.stage.kept)
        reply = await served.put(deployed(2, 2, model="models/two"), dry_run=True)
        assert reply.edition == 1
        assert reply.changes
        assert (served.stage.controller.record, served.stage.kept) == (before, kept)


async def test_changes_are_told_in_words() -> None:
    async with serving() as served:
        stage = served.stage
        async with stage.running(deployed(3, 1)):
            reply = await served.put(deployed(1, 2), dry_run=True)
            told = [" ".join(w for w in line.split() if "-" not in w) for line in reply.changes]
            assert sorted(told) == ["becomes decode", "drain too many"]
            assert (await served.put(deployed(3, 1), dry_run=True)).changes == []


def bad(**parts: object) -> Deployment:
    """With a plan of these lines."""
    lines = "\n".join(f"{name} = {value}" for name, value in parts.items())
    return replace(deployed(), plan_toml=lines, log_format="xml")


async def test_every_problem_of_a_deployment_is_told() -> None:
    async with serving() as served:
        text = bad(max_surge=-1, drain_s=-1).to_json()
        request = controller_pb2.DeployRequest(deployment_json=text)
        code, told = await served.refused("Deploy", request)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        for problem in ("max_surge must be", "drain_s must be", "log_format must be"):
            assert problem in told
        request = controller_pb2.DeployRequest(deployment_json="{")
        code, told = await served.refused("Deploy", request)
        assert (code, told) == (grpc.StatusCode.INVALID_ARGUMENT, "deployment: not JSON")
        assert served.stage.controller.record is None


@pytest.mark.parametrize("dry_run", [True, False])
async def test_what_does_not_fit_is_refused_and_named(dry_run: bool) -> None:
    async with serving() as served:
        text = deployed(9, 1).to_json()
        request = controller_pb2.DeployRequest(deployment_json=text, dry_run=dry_run)
        code, told = await served.refused("Deploy", request)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "2 of 9 prefill instances do not fit, each needs 1 CPU on one host" in told
        assert "left on 2 hosts: a (0 CPU), b (0 CPU)" in told
        assert served.stage.controller.record is None


async def test_while_ray_is_away_a_deployment_may_be_sent_again() -> None:
    async with serving() as served:
        served.stage.hands.away["hosts"] = 1
        request = controller_pb2.DeployRequest(deployment_json=deployed().to_json())
        assert (await served.refused("Deploy", request))[0] is grpc.StatusCode.UNAVAILABLE
        assert (await served.put(deployed())).edition == 1


# --- Watch ------------------------------------------------------------------------------------


async def test_watch_tells_at_once_and_after_each_change() -> None:
    async with serving() as served:
        stage = served.stage
        states = served.stub.Watch(controller_pb2.WatchRequest(), timeout=CALL_S)
        first = await states.read()
        assert (first.cluster, first.term, first.edition) == ("mine", 7, 0)
        assert (first.settled, list(first.waits_for), first.plan_toml) == (False, ["a plan"], "")
        assert not first.HasField("online")
        stage.controller.put(deployed(1, 1))
        while (state := await states.read()).edition == 0:
            pass
        assert state.plan_toml == deployed(1, 1).plan_toml
        assert "prefill: 0 of 1 serve" in state.waits_for
        stage.controller.roster.put(
            replace(member("instance-a", Role.DECODE, "m", MemberState.STARTING), host="a")
        )
        while not (state := await states.read()).members:
            pass
        (seen,) = state.members
        assert (seen.name, seen.role, seen.state) == (
            "instance-a",
            types_pb2.ROLE_DECODE,
            "starting",
        )
        assert (seen.host, seen.make) == ("a", "m")
        stage.controller.roster.say("instance-a", "did something")
        while state.events[-1].member != "instance-a":
            state = await states.read()
        assert state.events[-1].text == "did something"
        assert state.events[-1].at_unix_s > 1e9
        states.cancel()


async def test_watch_sees_it_settle() -> None:
    async with serving() as served:
        served.online.seen = controller_pb2.OnlineState(decision="none")
        async with served.stage.running():
            await served.put(deployed(1, 1))
            states = served.stub.Watch(controller_pb2.WatchRequest(), timeout=60.0)
            while not (state := await states.read()).settled:
                assert state.waits_for
            assert list(state.waits_for) == []
            assert len(state.members) == 3
            assert [m.http_address != "" for m in state.members] == [False, False, True]
            assert state.online.decision == "none"
            states.cancel()


# --- the rest ---------------------------------------------------------------------------------

SECONDS = [
    (0.0, None),
    (86_400.0, None),
    (-1.0, "must be 0 to 86400 seconds, got -1"),
    (86_400.5, "must be 0 to 86400 seconds"),
    (math.inf, "got inf"),
    (math.nan, "got nan"),
]


def of_drain(seconds: float) -> object:
    return controller_pb2.DrainMemberRequest(name="instance-zzzzz", timeout_s=seconds)


def of_end(seconds: float) -> object:
    return controller_pb2.EndRequest(drain_s=seconds)


@pytest.mark.parametrize(("seconds", "problem"), SECONDS)
@pytest.mark.parametrize(
    ("method", "request_of"), [("DrainMember", of_drain), ("End", of_end)], ids=["drain", "end"]
)
async def test_patience_has_bounds(
    method: str, request_of: Callable[[float], object], seconds: float, problem: str | None
) -> None:
    async with serving() as served:
        request = request_of(seconds)
        if problem is not None:
            code, told = await served.refused(method, request)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert problem in told
            assert not any("ending" in line for line in served.stage.told)
        elif method == "End":
            await served.stub.End(request, timeout=CALL_S)
            assert served.stage.told == [": ending"]
        else:
            code, told = await served.refused(method, request)
            assert (code, told) == (
                grpc.StatusCode.NOT_FOUND,
                "no member of that name; there are: nobody",
            )


async def test_drain_by_name() -> None:
    async with serving() as served, served.stage.running(deployed(1, 1)):
        victim = served.stage.one(Role.PREFILL).name
        request = controller_pb2.DrainMemberRequest(name=victim, timeout_s=3.0)
        await served.stub.DrainMember(request, timeout=CALL_S)
        await served.stage.until(lambda: victim not in served.stage.names())
        assert served.stage.calls.said == [(victim, 3.0, 7)]


async def test_nothing_is_put_into_a_cluster_that_ends() -> None:
    async with serving() as served:
        await served.stub.End(controller_pb2.EndRequest(drain_s=1.0), timeout=CALL_S)
        request = controller_pb2.DeployRequest(deployment_json=deployed().to_json())
        code, told = await served.refused("Deploy", request)
        assert (code, told) == (grpc.StatusCode.FAILED_PRECONDITION, "the cluster is ending")


PIECES = [
    # asked for, from where, length of the log, of the answer
    (0, 0, 10, 10),
    (3, 2, 10, 3),
    (0, 0, 2 * MAX_LOG_BYTES, DEFAULT_LOG_BYTES),
    (MAX_LOG_BYTES, 0, 2 * MAX_LOG_BYTES, MAX_LOG_BYTES),
    (2**32 - 1, 0, 2 * MAX_LOG_BYTES, MAX_LOG_BYTES),
    (0, 10, 10, 0),
]


@pytest.mark.parametrize(("max_bytes", "offset", "length", "want"), PIECES)
async def test_logs_come_in_pieces(max_bytes: int, offset: int, length: int, want: int) -> None:
    async with serving() as served:
        served.stage.hands.logs["instance-a"] = b"x" * length
        request = controller_pb2.LogsRequest(name="instance-a", offset=offset, max_bytes=max_bytes)
        reply = await served.stub.Logs(request, timeout=CALL_S)
        assert (len(reply.text), reply.next_offset) == (want, offset + want)


async def test_a_log_may_be_cut_within_a_letter() -> None:
    async with serving() as served:
        served.stage.hands.logs["instance-a"] = "é".encode()
        request = controller_pb2.LogsRequest(name="instance-a", max_bytes=1)
        reply = await served.stub.Logs(request, timeout=CALL_S)
        assert (reply.text, reply.next_offset) == ("\N{REPLACEMENT CHARACTER}", 1)


async def test_replan_is_asked_of_online_planning() -> None:
    async with serving() as served:
        reply = await served.stub.Replan(controller_pb2.ReplanRequest(dry_run=True), timeout=CALL_S)
        assert list(reply.reasons) == ["dry_run: True"]
