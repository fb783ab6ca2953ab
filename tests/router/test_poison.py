"""A request that kills whoever serves it: it is found, nobody else suffers, and it stays out."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.clock import ManualClock
from core.config import RouterConfig
from core.errors import DeadlinePassed, NoInstance, Quarantined
from core.ids import InstanceId, RequestId
from core.request import Request, SamplingParams, StopParams
from router.client import Completion
from router.suspects import MAX_REMEMBERED, REMEMBERED_S, Case, Suspects, identity_of
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import cluster_pb2, cluster_pb2_grpc
from tests.router.conftest import OpenStage, Stage
from tests.router.fake_model import expected
from tests.router.fakes import FakeInstance
from tests.router.script import BOUND_S, Poison
from tests.router.test_recovery import ask, gate_token

FATAL = 77
NUM_TOKENS = 30
D0, D1 = InstanceId("d0"), InstanceId("d1")


def num_dead(on: Stage) -> int:
    return sum(peer.is_dead for peer in on.peers.values())


async def complete(on: Stage, first_id: int) -> list[Completion]:
    return await on.client.complete(
        token_ids=(first_id, 6, 7), max_tokens=NUM_TOKENS, seed=3, timeout_s=BOUND_S
    )


async def answered(on: Stage, first_id: int) -> None:
    [answer] = await complete(on, first_id)
    assert list(answer.token_ids) == expected((first_id, 6, 7), NUM_TOKENS, seed=3)


PLACES = [("in its prefill", None), ("at its first step", 1), ("in the middle", 9)]


@pytest.mark.parametrize("num_others", [0, 7])
@pytest.mark.parametrize("position", [p for _, p in PLACES], ids=[name for name, _ in PLACES])
async def test_it_is_quarantined_after_two(
    stage: OpenStage, position: int | None, num_others: int
) -> None:
    on = await stage("pppddd")
    for peer in on.peers.values():
        peer.script.poison = Poison(FATAL, position)
    async with asyncio.TaskGroup() as group:
        for i in range(num_others):
            group.create_task(answered(on, 100 + i))
        with pytest.raises(Quarantined, match="2 instances died"):
            await complete(on, FATAL)
    assert num_dead(on) == 2
    # The same again is not even tried, and everybody else is served.
    with pytest.raises(Quarantined, match="first seen as"):
        await complete(on, FATAL)
    await answered(on, 200)
    assert num_dead(on) == 2


async def test_two_failures_do_not_make_an_innocent_guilty(stage: OpenStage) -> None:
    """It got past the place of the first."""
    on = await stage("pddd")
    gates = [gate_token(n)(peer) for name, peer in on.peers.items() for n in (1, 11)]
    asked = ask(on.client)
    for num_tokens in (1, 11):
        await asked.until_tokens(num_tokens)
        [busy] = [p for p in on.peers.values() if not p.is_dead and p.jobs]
        await busy.kill()
        for gate in gates[0::2] if num_tokens == 1 else gates[1::2]:
            gate.open.set()
    finished = await asked.answer()
    assert finished.timing.num_attempts >= 3


async def fall_silent(on: Stage, peer: FakeInstance) -> None:
    peer.script.mute = True


async def leave_with_work(on: Stage, peer: FakeInstance) -> None:
    """It drains, runs out of time, and ends."""
    peer.load.draining = True
    peer.drop_subscriptions()
    async with (
        dial(on.routers[0].address, plane=Plane.CLIENT) as channel,
        asyncio.timeout(BOUND_S),
    ):
        stub, has_heard = cluster_pb2_grpc.ClusterStub(channel), False
        while not has_heard:
            reply = await stub.Status(cluster_pb2.StatusRequest(), timeout=BOUND_S)
            has_heard = any(i.instance_id == peer.name and i.load.draining for i in reply.instances)
    await peer.kill()


@pytest.mark.parametrize("end", [fall_silent, leave_with_work])
async def test_what_is_no_crash_makes_nobody_guilty(
    stage: OpenStage, end: Callable[[Stage, FakeInstance], Awaitable[None]]
) -> None:
    """Twice, at nearly the same place."""
    on = await stage("pddd", config=RouterConfig(silence_s=0.6))
    gates = {n: [gate_token(n)(peer) for peer in on.peers.values()] for n in (4, 5)}
    asked, gone = ask(on.client), set[str]()
    for num_tokens in (4, 5):
        await asked.until_tokens(num_tokens)
        [busy] = [p for p in on.peers.values() if p.jobs and p.name not in gone]
        gone.add(busy.name)
        await end(on, busy)
        for gate in gates[num_tokens]:
            gate.open.set()
    assert (await asked.answer()).timing.num_attempts >= 3


@pytest.mark.parametrize("num_tokens", [1, 11])
async def test_a_power_cut_makes_nobody_guilty(stage: OpenStage, num_tokens: int) -> None:
    """All die at once; the first whose death is heard of must not send the request to the next."""
    on = await stage("pppddd")
    gates = [gate_token(num_tokens)(peer) for peer in on.peers.values()]
    asked = ask(on.client, timeout_s=3.0)
    await asked.until_tokens(num_tokens)
    async with asyncio.TaskGroup() as group:
        for peer in on.peers.values():
            group.create_task(peer.kill())
    for gate in gates:
        gate.open.set()
    with pytest.raises((NoInstance, DeadlinePassed)):
        await asked.answer()


# --- the shell alone ------------------------------------------------------------------------


def request(name: str = "r", prompt: tuple[int, ...] = (1, 2), tenant: str = "t") -> Request:
    return Request(
        request_id=RequestId(name),
        model="m",
        prompt_token_ids=prompt,
        sampling=SamplingParams(),
        stop=StopParams(max_tokens=4),
        deadline_s=10.0,
        tenant=tenant,
    )


def kill_by(suspects: Suspects, case: Case, *instances: InstanceId) -> None:
    for name in instances:
        case.in_step = {name: True}
        suspects.died(name)


def is_refused(suspects: Suspects, asked: Request) -> bool:
    try:
        suspects.check(asked)
    except Quarantined:
        return True
    return False


SAME = [
    # id, asked again, refused
    ("under another id", request("other"), True),
    ("with another seed", replace(request(), sampling=SamplingParams(seed=9)), True),
    ("by another tenant", request(tenant="u"), False),
    ("with another prompt", request(prompt=(1, 3)), False),
    ("at another temperature", replace(request(), sampling=SamplingParams(temperature=0)), False),
    ("for more tokens", replace(request(), stop=StopParams(max_tokens=5)), False),
]


@pytest.mark.parametrize(("again", "want"), [s[1:] for s in SAME], ids=[s[0] for s in SAME])
def test_what_is_the_same_request(again: Request, want: bool) -> None:
    suspects = Suspects(clock := ManualClock())
    kill_by(suspects, suspects.open(request()), D0, D1)
    assert is_refused(suspects, again) == want
    clock.advance(REMEMBERED_S)
    assert not is_refused(suspects, again)


def test_what_is_remembered_is_bounded() -> None:
    suspects = Suspects(ManualClock())
    for i in range(MAX_REMEMBERED + 5):
        kill_by(suspects, case := suspects.open(request(f"r{i}", (i,))), D0, D1)
        suspects.close(case, completed=False)
    assert is_refused(suspects, request(prompt=(5,)))
    assert not is_refused(suspects, request(prompt=(4,)))


def test_a_completed_one_is_no_suspect() -> None:
    suspects = Suspects(ManualClock())
    for name in (D0, D1):
        kill_by(suspects, case := suspects.open(request()), name)
        suspects.close(case, completed=True)
    assert not is_refused(suspects, request())


def test_suspects_are_kept_apart_for_a_while() -> None:
    suspects = Suspects(clock := ManualClock())
    cases = [suspects.open(request(f"r{i}", (i,))) for i in range(2)]
    for case in cases:
        case.at, case.in_step = frozenset({D0}), {D0: False}
    suspects.died(D0)
    cases[0].at, cases[1].at = frozenset({D1}), frozenset()
    assert suspects.apart_from(cases[1]) == {D1}
    clock.advance(1.0)
    assert suspects.apart_from(cases[1]) == frozenset()
    suspects.progressed(cases[0], 20)
    assert suspects.apart_from(cases[0]) == frozenset()


@given(st.lists(st.integers(0, 3), max_size=8), st.booleans())
def test_identity_is_of_what_an_instance_sees(prompt: list[int], longer: bool) -> None:
    one = identity_of(request(prompt=tuple(prompt)))
    other = identity_of(request("x", prompt=(*prompt, 1) if longer else tuple(prompt)))
    assert (one == other) == (not longer)


def test_a_broken_stream_is_judged_once_it_is_known_why() -> None:
    suspects = Suspects(clock := ManualClock())
    case = suspects.open(request())
    suspects.broke(case, D0)
    heard_at_s = {D0: clock.now_s()}  # perhaps on its way before it broke
    clock.advance(0.05)
    assert suspects.is_undecided(case, heard_at_s)
    assert suspects.is_undecided(case, {})
    # It was heard since: only the stream broke.
    assert not suspects.is_undecided(case, {D0: clock.now_s()})
    suspects.broke(case, D0)
    clock.advance(1.5)
    assert not suspects.is_undecided(case, {})
    suspects.broke(case, D0)
    suspects.died(D0)
    assert not suspects.is_undecided(case, {})
    assert suspects.apart_from(case) == frozenset()
    kill_by(suspects, case, D1)
    assert is_refused(suspects, case.request)
