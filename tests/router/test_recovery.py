"""Each row of the failure table that names the router: the same tokens, whatever dies and when."""

import asyncio
from collections.abc import Callable

import grpc
import pytest

from core.config import RouterConfig
from core.errors import AttemptsExhausted, DeadlinePassed, InvalidRequest, NoInstance
from router.client import AsyncClient
from router.events import Delta, Finished
from tests.router.conftest import OpenStage, Stage
from tests.router.fake_model import EOS, expected, expected_logprobs
from tests.router.fakes import FakeInstance
from tests.router.script import BOUND_S, Gate

PROMPT = (5, 6, 7)
NUM_TOKENS = 12


class Asked:
    """One request under way, and what of it has arrived."""

    def __init__(self, client: AsyncClient, timeout_s: float) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[object] = []
        self.text = ""
        self._arrived = asyncio.Condition()
        self._events = client.generate(
            token_ids=PROMPT, max_tokens=NUM_TOKENS, seed=3, logprobs=1, timeout_s=timeout_s
        )
        self._task = asyncio.ensure_future(self._read())

    async def _read(self) -> Finished:
        async for event in self._events:
            if isinstance(event, Finished):
                return event
            if isinstance(event, Delta):
                assert event.position == len(self.token_ids)
                self.token_ids += event.token_ids
                self.logprobs += event.logprobs
                self.text += event.text
            async with self._arrived:
                self._arrived.notify_all()
        raise AssertionError("the stream ended without Finished")

    async def until_tokens(self, num: int) -> None:
        async with asyncio.timeout(BOUND_S), self._arrived:
            await self._arrived.wait_for(lambda: len(self.token_ids) >= num)

    async def end(self) -> Finished:
        """Wait for the end, well or badly."""
        async with asyncio.timeout(BOUND_S):
            return await self._task

    async def answer(self) -> Finished:
        """Wait for the end, which must be the one without faults."""
        finished = await self.end()
        assert self.token_ids == expected(PROMPT, NUM_TOKENS, seed=3)
        assert self.logprobs == expected_logprobs(self.token_ids, 1)
        assert self.text == " ".join(f"w{i}" for i in self.token_ids)
        return finished


def ask(client: AsyncClient, timeout_s: float = BOUND_S) -> Asked:
    return Asked(client, timeout_s)


def gate_prefill(peer: FakeInstance) -> Gate:
    peer.script.prefill_gate = Gate()
    return peer.script.prefill_gate


def gate_fetch(peer: FakeInstance) -> Gate:
    peer.script.fetch_gate = Gate()
    return peer.script.fetch_gate


def gate_token(position: int) -> Callable[[FakeInstance], Gate]:
    def set_gate(peer: FakeInstance) -> Gate:
        return peer.script.token_gates.setdefault(position, Gate())

    return set_gate


KILLS = [
    # id                                    roles   victim  held at
    ("prefill while it computes", "ppd", "p", gate_prefill),
    ("prefill before decode has fetched", "ppd", "p", gate_fetch),
    ("decode before its commit", "pdd", "d", gate_fetch),
    ("decode after its commit", "pdd", "d", gate_token(0)),
    ("decode after one token", "pdd", "d", gate_token(1)),
    ("decode in the middle", "pdd", "d", gate_token(6)),
    ("decode before its last token", "pdd", "d", gate_token(NUM_TOKENS - 1)),
    ("the only prefill: decode does both", "pd", "p", gate_prefill),
    ("the only decode: prefill does both", "pd", "d", gate_token(5)),
]


@pytest.mark.parametrize(
    ("roles", "victim", "hold"), [c[1:] for c in KILLS], ids=[c[0] for c in KILLS]
)
async def test_one_instance_dies(
    stage: OpenStage,
    roles: str,
    victim: str,
    hold: Callable[[FakeInstance], Gate],
) -> None:
    on = await stage(roles)
    # What holds the answer up is where the phase runs; who dies is the one that serves it.
    holder = "d" if hold is gate_fetch else victim
    gates = {name: hold(peer) for name, peer in on.peers.items() if name.startswith(holder)}
    asked = ask(on.client)
    await _first_reached(list(gates.values()))
    await _busy(on, victim).kill()
    for gate in gates.values():
        gate.open.set()
    finished = await asked.answer()
    # A third when the victim had taken the KV and could not tell any more.
    assert finished.timing.num_attempts in (2, 3)


async def _first_reached(gates: list[Gate]) -> None:
    waits = [asyncio.ensure_future(gate.reached.wait()) for gate in gates]
    async with asyncio.timeout(BOUND_S):
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def _busy(on: Stage, letter: str) -> FakeInstance:
    """The instance of a role that serves the one request."""
    peers = [peer for name, peer in on.peers.items() if name.startswith(letter)]
    [busy] = [peer for peer in peers if (peer.prefills if letter == "p" else peer.decodes)]
    return busy


async def test_decode_lost_before_commit_computes_nothing_anew(stage: OpenStage) -> None:
    on = await stage("pdd")
    gates = [gate_fetch(on["d0"]), gate_fetch(on["d1"])]
    asked = ask(on.client)
    await _first_reached(gates)
    await _busy(on, "d").kill()
    for gate in gates:
        gate.open.set()
    await asked.answer()
    assert len(on["p0"].prefills) == 1
    [first], [second] = on["d0"].decodes, on["d1"].decodes
    fences = {first.work.fence.attempt, second.work.fence.attempt}
    assert fences == {1, 2}
    assert list(first.work.output_token_ids) == list(second.work.output_token_ids) == []


async def test_prefill_lost_before_commit_keeps_the_reservation(stage: OpenStage) -> None:
    on = await stage("ppd")
    gate = gate_fetch(on["d0"])
    asked = ask(on.client)
    await gate.wait_reached()
    await _busy(on, "p").kill()
    await on["d0"].until(lambda p: len(p.retargets) == 1)
    gate.open.set()
    await asked.answer()
    [decode], [retarget] = on["d0"].decodes, on["d0"].retargets
    assert (decode.work.fence.attempt, retarget.fence.attempt) == (1, 2)
    # What was delivered is forced.
    assert list(retarget.output_token_ids) == expected(PROMPT, 1, seed=3)


async def test_retarget_that_comes_after_the_commit(stage: OpenStage) -> None:
    on = await stage("ppd")
    decode = on["d0"]
    held = gate_token(0)(decode)
    asked = ask(on.client)
    await held.wait_reached()
    # The commit is not heard: its news waits behind a broken subscription.
    victim = _busy(on, "p")
    other = on["p1"] if victim is on["p0"] else on["p0"]
    gate_prefill(other)
    decode.outboxes["router-0"].kept.clear()
    await victim.kill()
    held.open.set()
    await asked.answer()
    await other.until(lambda p: p.num_prefills_open == 0)


async def test_forced_tokens_after_a_late_loss(stage: OpenStage) -> None:
    on = await stage("pdd")
    gates = [gate_token(6)(on["d0"]), gate_token(6)(on["d1"])]
    asked = ask(on.client)
    await asked.until_tokens(6)
    await _busy(on, "d").kill()
    for gate in gates:
        gate.open.set()
    await asked.answer()
    first, second = on["p0"].prefills
    assert list(first.work.output_token_ids) == []
    assert list(second.work.output_token_ids) == asked.token_ids[:6]


async def test_placed_anew_only_where_somebody_answers(stage: OpenStage) -> None:
    """One power cut ends many: links to the others look well when the first is heard of."""
    on = await stage("ppdddd")
    gates = [gate_token(6)(peer) for name, peer in on.peers.items() if name.startswith("d")]
    asked = ask(on.client)
    await asked.until_tokens(6)
    victim = _busy(on, "d")
    left = [peer for name, peer in on.peers.items() if name.startswith("d") and peer is not victim]
    alive, *others = left
    for peer in others:
        peer.script.deaf = True
    await victim.kill()
    for gate in gates:
        gate.open.set()
    await asked.answer()
    assert alive.decodes
    assert not any(peer.decodes for peer in others)


async def test_broken_stream_to_a_living_instance_loses_nothing(stage: OpenStage) -> None:
    on = await stage("pd")
    gate = gate_token(5)(on["d0"])
    asked = ask(on.client)
    await asked.until_tokens(5)
    on["d0"].drop_subscriptions()
    await on["d0"].until(lambda p: len(p.subscriptions) == 2)
    named = {ack.handoff_id: ack.next_position for ack in on["d0"].subscriptions[1].acks}
    assert list(named.values()) == [5]
    gate.open.set()
    finished = await asked.answer()
    assert finished.timing.num_attempts == 1


async def test_silent_instance_is_lost(stage: OpenStage) -> None:
    on = await stage("pdd", config=RouterConfig(silence_s=0.6))
    gates = [gate_token(4)(on["d0"]), gate_token(4)(on["d1"])]
    asked = ask(on.client)
    await asked.until_tokens(4)
    _busy(on, "d").script.mute = True
    for gate in gates:
        gate.open.set()
    finished = await asked.answer()
    assert finished.timing.num_attempts == 2


async def test_new_incarnation_means_the_old_is_lost(stage: OpenStage) -> None:
    on = await stage("pdd")
    gates = [gate_token(4)(on["d0"]), gate_token(4)(on["d1"])]
    asked = ask(on.client)
    await asked.until_tokens(4)
    restarted = _busy(on, "d")
    restarted.incarnation = "second"
    await on.join(restarted)
    for gate in gates:
        gate.open.set()
    finished = await asked.answer()
    assert finished.timing.num_attempts == 2


SOFT = [
    # id                        what d0 and d1 do once
    ("decode refuses: full", {"decode_error": grpc.StatusCode.RESOURCE_EXHAUSTED}),
    ("decode refuses: bug", {"decode_error": grpc.StatusCode.UNKNOWN}),
    ("decode preempts at once", {"output_errors": {0: "RESOURCE_EXHAUSTED"}}),
    ("decode preempts later", {"output_errors": {7: "RESOURCE_EXHAUSTED"}}),
    ("decode cannot fetch", {"kv_lost": 1}),
]


@pytest.mark.parametrize("faults", [c[1] for c in SOFT], ids=[c[0] for c in SOFT])
async def test_refusals_and_preemptions_are_placed_anew(
    stage: OpenStage, faults: dict[str, object]
) -> None:
    on = await stage("ppdd")
    for name, value in faults.items():
        setattr(on["d0"].script, name, value)
    on["d1"].load.num_decoding = 50
    on["d1"].drop_subscriptions()
    await on["d1"].until(lambda p: len(p.subscriptions) == 2)
    on["d0"].load.num_decoding = 0
    finished = await ask(on.client).answer()
    assert finished.timing.num_attempts == 2


async def test_prefill_that_refuses_is_passed_over(stage: OpenStage) -> None:
    on = await stage("ppd")
    on["p0"].script.prefill_error = grpc.StatusCode.UNAVAILABLE
    for _ in range(2):
        await ask(on.client).answer()


async def test_verdict_of_a_worker_is_final(stage: OpenStage) -> None:
    on = await stage("ppd")
    on["p0"].script.prefill_error = grpc.StatusCode.INVALID_ARGUMENT
    on["p1"].script.prefill_error = grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(InvalidRequest):
        await ask(on.client).end()
    assert len(on["p0"].prefills) + len(on["p1"].prefills) == 1
    await on["d0"].until(lambda p: len(p.stops) == 1)


async def test_attempts_run_out(stage: OpenStage) -> None:
    on = await stage("pd", config=RouterConfig(max_attempts=2))
    for peer in on.peers.values():
        peer.script.prefill_error = grpc.StatusCode.UNAVAILABLE
    with pytest.raises(AttemptsExhausted, match="scripted"):
        await ask(on.client).end()


async def test_waits_for_a_restart(stage: OpenStage) -> None:
    on = await stage("m")
    gate = gate_token(5)(on["m0"])
    asked = ask(on.client)
    await gate.wait_reached()
    port = int(on["m0"].address.rsplit(":", 1)[1])
    await on["m0"].kill()
    on["m0"].incarnation = "second"
    gate.open.set()
    await on["m0"].start(port)
    await on.join(on["m0"])
    finished = await asked.answer()
    assert finished.timing.num_attempts == 2


async def test_nobody_comes_back_before_the_deadline(stage: OpenStage) -> None:
    on = await stage("m")
    gate = gate_token(5)(on["m0"])
    asked = ask(on.client, timeout_s=1.0)
    await gate.wait_reached()
    await on["m0"].kill()
    with pytest.raises((NoInstance, DeadlinePassed)):
        await asked.end()


async def test_registry_away_changes_nothing(stage: OpenStage) -> None:
    on = await stage("pdd")
    on.registry.store.set_reachable(False)
    gates = [gate_token(4)(on["d0"]), gate_token(4)(on["d1"])]
    asked = ask(on.client)
    await asked.until_tokens(4)
    await _busy(on, "d").kill()
    for gate in gates:
        gate.open.set()
    await asked.answer()


async def test_router_dies_and_the_client_resumes(stage: OpenStage) -> None:
    on = await stage("pdd", num_routers=2)
    gates = [gate_token(6)(on["d0"]), gate_token(6)(on["d1"])]
    asked = ask(on.client)
    await asked.until_tokens(6)
    on.routers[0].task.cancel()
    for gate in gates:
        gate.open.set()
    await asked.answer()
    resumed = on["p0"].prefills[-1].work
    assert resumed.fence.epoch == 1
    assert resumed.router_id == "router-1"
    assert resumed.handoff_id == on["p0"].prefills[0].work.handoff_id
    assert resumed.sampling.seed == 3


async def test_end_of_sequence_from_prefill(stage: OpenStage) -> None:
    on = await stage("pd")
    first = expected(PROMPT, 1, seed=3)[0]
    [answer] = await on.client.complete(
        token_ids=PROMPT, max_tokens=9, seed=3, stop_token_ids=[first, EOS]
    )
    assert list(answer.token_ids) == [first]
    await on["d0"].until(lambda p: len(p.stops) == 1 or not p.decodes)
