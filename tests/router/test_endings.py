"""Cancel, deadline, slow readers, bad input, drain: everything ends, on both workers, typed."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from core.config import RouterConfig
from core.errors import (
    DeadlinePassed,
    Draining,
    DuplicateRequest,
    InvalidRequest,
    NoInstance,
    Saturated,
    SlowReader,
    UnknownModel,
)
from core.request import FinishReason
from router.client import AsyncClient, Client
from router.events import Delta, Finished
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import (
    cluster_pb2,
    cluster_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    types_pb2,
    workers_pb2,
)
from rpc.status import error_from
from tests.router.conftest import OpenStage, Stage
from tests.router.fake_model import expected
from tests.router.fakes import FakeInstance
from tests.router.script import BOUND_S, Gate

PROMPT = (5, 6, 7)
GREEDY = types_pb2.SamplingParams(temperature=0.0, seed=3)


def request(**fields: object) -> generation_pb2.GenerateRequest:
    message = generation_pb2.GenerateRequest(
        text="w5 w6 w7", sampling=GREEDY, stop=types_pb2.StopParams(max_tokens=4)
    )
    message.MergeFrom(generation_pb2.GenerateRequest(**fields))  # type: ignore[arg-type]
    return message


@asynccontextmanager
async def raw(on: Stage) -> AsyncIterator[grpc.aio.Channel]:
    async with dial(
        on.routers[0].address, {"grpc.max_send_message_length": -1}, plane=Plane.CLIENT
    ) as channel:
        yield channel


async def read_all(
    channel: grpc.aio.Channel, message: generation_pb2.GenerateRequest
) -> list[generation_pb2.GenerateResponse]:
    call = generation_pb2_grpc.GenerationStub(channel).Generate(message, timeout=BOUND_S)
    return [response async for response in call]


BAD = [
    # id               request                                             status
    ("empty prompt", request(text=""), "INVALID_ARGUMENT"),
    ("no prompt", generation_pb2.GenerateRequest(), "INVALID_ARGUMENT"),
    ("token out of vocabulary", request(token_ids={"ids": [512]}), "INVALID_ARGUMENT"),
    ("long text", request(text="w5 " * 5000), "INVALID_ARGUMENT"),
    ("over the context", request(stop={"max_tokens": 4095}), "INVALID_ARGUMENT"),
    ("unknown model", request(model="gpt-17"), "NOT_FOUND"),
    ("NaN temperature", request(sampling={"temperature": math.nan}), "INVALID_ARGUMENT"),
    ("negative max_tokens", request(stop={"max_tokens": -1}), "INVALID_ARGUMENT"),
    ("zero max_tokens", request(stop={"max_tokens": 0}), "INVALID_ARGUMENT"),
    ("empty stop", request(stop={"stop_strings": [""]}), "INVALID_ARGUMENT"),
    ("huge n", request(num_choices=10_000), "INVALID_ARGUMENT"),
    ("zero timeout", request(timeout_s=0.0), "INVALID_ARGUMENT"),
    ("strange id", request(request_id="../x"), "INVALID_ARGUMENT"),
    ("resume without id", request(resume={"epoch": 1}), "INVALID_ARGUMENT"),
    ("5 MB message", request(text="x" * 5_000_000), "RESOURCE_EXHAUSTED"),
]


@pytest.mark.parametrize(("bad", "status"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
async def test_bad_input_and_then_good(
    stage: OpenStage, bad: generation_pb2.GenerateRequest, status: str
) -> None:
    on = await stage("pd")
    async with raw(on) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_all(channel, bad)
        assert caught.value.code().name == status
        last = (await read_all(channel, request()))[-1]
    assert last.finished.num_output_tokens == 4
    assert len(on["p0"].prefills) == 1


async def test_a_message_that_is_none(stage: OpenStage) -> None:
    on = await stage("pd")
    async with raw(on) as channel:
        method: Any = channel.unary_stream("/baton.v1.Generation/Generate")
        call = method(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_violations_arrive_typed(stage: OpenStage) -> None:
    on = await stage("pd")
    with pytest.raises(InvalidRequest) as caught:
        await on.client.complete("", max_tokens=0)
    assert {v.field for v in caught.value.violations} == {"text", "stop.max_tokens"}
    with pytest.raises(UnknownModel):
        await on.client.complete("w5", model="gpt-17")


HOLDS: list[tuple[str, Callable[[Stage], Gate]]] = [
    ("while prefill computes", lambda on: _set(on["p0"], "prefill_gate")),
    ("before decode has fetched", lambda on: _set(on["d0"], "fetch_gate")),
    ("while decoding", lambda on: on["d0"].script.token_gates.setdefault(2, Gate())),
]


def _set(peer: FakeInstance, name: str) -> Gate:
    setattr(peer.script, name, Gate())
    gate: Gate = getattr(peer.script, name)
    return gate


@pytest.mark.parametrize("hold", [c[1] for c in HOLDS], ids=[c[0] for c in HOLDS])
async def test_cancel_reaches_both_workers(stage: OpenStage, hold: Callable[[Stage], Gate]) -> None:
    on = await stage("pd")
    gate = hold(on)
    asked = asyncio.ensure_future(on.client.complete(token_ids=PROMPT, max_tokens=9))
    await gate.wait_reached()
    asked.cancel()
    await on["p0"].until(lambda p: p.num_prefills_open == 0)
    await on["d0"].until(lambda p: len(p.stops) == 1 and not p.jobs)


@pytest.mark.parametrize("hold", [c[1] for c in HOLDS], ids=[c[0] for c in HOLDS])
async def test_deadline_reaches_both_workers(
    stage: OpenStage, hold: Callable[[Stage], Gate]
) -> None:
    on = await stage("pd")
    hold(on)
    async with raw(on) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_all(channel, request(timeout_s=0.3))
    assert isinstance(error_from(caught.value), DeadlinePassed)
    assert 0 < on["p0"].prefills[0].work.timeout_s <= 0.3
    await on["p0"].until(lambda p: p.num_prefills_open == 0)
    await on["d0"].until(lambda p: len(p.stops) == 1 and not p.jobs)


async def test_shorter_grpc_deadline_wins(stage: OpenStage) -> None:
    on = await stage("pd")
    gate = _set(on["p0"], "prefill_gate")
    async with raw(on) as channel:
        call = generation_pb2_grpc.GenerationStub(channel).Generate(request(), timeout=0.3)
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in call:
                pass
    await on["p0"].until(lambda p: p.num_prefills_open == 0)
    assert gate.reached.is_set()
    assert on["p0"].prefills[0].work.timeout_s <= 0.3


async def test_slow_reader_is_ended_and_its_blocks_freed(stage: OpenStage) -> None:
    config = RouterConfig(max_client_buffer_bytes=16 * 1024, client_stall_s=0.05)
    on = await stage("pd", config=config)
    on["d0"].script.num_tokens_per_frame = 8
    async with raw(on) as channel:
        slow = generation_pb2_grpc.GenerationStub(channel).Generate(
            request(stop={"max_tokens": 4000}, num_choices=16), timeout=BOUND_S
        )
        await slow.read()
        # Reads no more: its choices are stopped, and others are served meanwhile.
        await on["d0"].until(lambda p: len(p.stops) > 0)
        [answer] = await on.client.complete(token_ids=PROMPT, max_tokens=8, seed=3)
        assert list(answer.token_ids) == expected(PROMPT, 8, seed=3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _read_to_the_end(slow)
    assert isinstance(error_from(caught.value), SlowReader)


async def _read_to_the_end(call: Any) -> None:  # noqa: ANN401 - a stub's call
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_stop_string_ends_the_answer_at_its_token(stage: OpenStage) -> None:
    on = await stage("pd")
    want = expected(PROMPT, 12, seed=3)
    stop = f"w{want[3]} w{want[4]}"
    [answer] = await on.client.complete(token_ids=PROMPT, max_tokens=12, seed=3, stop=[stop])
    assert list(answer.token_ids) == want[:5]
    assert answer.text == "".join(f"w{i} " for i in want[:3])
    finished = answer.finished
    assert (finished.reason, finished.matched_stop) == (FinishReason.STOP, stop)
    await on["d0"].until(lambda p: len(p.stops) == 1)


async def test_choices_are_children_of_one_request(stage: OpenStage) -> None:
    on = await stage("ppd")
    answers = await on.client.complete(token_ids=PROMPT, max_tokens=5, seed=3, n=3)
    for child, answer in enumerate(answers):
        assert list(answer.token_ids) == expected(PROMPT, 5, seed=3, child=child)
    ids = {decode.work.handoff_id for decode in on["d0"].decodes}
    assert len(ids) == 3


async def test_duplicate_id_and_resume_that_takes_it(stage: OpenStage) -> None:
    on = await stage("pd")
    gate = on["d0"].script.token_gates.setdefault(2, Gate())
    options = {"token_ids": PROMPT, "max_tokens": 5, "seed": 3, "request_id": "mine"}
    first = asyncio.ensure_future(on.client.complete(**options))  # type: ignore[arg-type]
    await gate.wait_reached()
    with pytest.raises(DuplicateRequest):
        await on.client.complete(**options)  # type: ignore[arg-type]
    want = expected((5, 6, 7), 4, seed=3)
    gate.open.set()
    async with raw(on) as channel:
        resumed = request(request_id="mine", resume={"epoch": 7, "output_token_ids": want[:2]})
        responses = await read_all(channel, resumed)
    deltas = [response.delta for response in responses if response.HasField("delta")]
    assert deltas[0].position == 2
    assert "".join(delta.text for delta in deltas) == " ".join(f"w{i}" for i in want)
    await asyncio.wait({first})
    first.exception()


async def test_an_id_may_be_used_again_and_workers_see_higher_attempts(stage: OpenStage) -> None:
    on = await stage("pd")
    for _ in range(3):
        [answer] = await on.client.complete(
            token_ids=PROMPT, max_tokens=3, seed=3, request_id="mine"
        )
        assert list(answer.token_ids) == expected(PROMPT, 3, seed=3)
        assert answer.finished.timing.num_attempts == 1
    assert [prefill.work.fence.attempt for prefill in on["p0"].prefills] == [1, 2, 3]


async def test_news_that_nobody_reads_is_stopped_once(stage: OpenStage) -> None:
    on = await stage("pd")
    for position in range(3):
        stray = workers_pb2.Output(
            handoff_id="who/0",
            fence=types_pb2.Fence(attempt=2),
            first_position=position,
            token_ids=[5],
        )
        on["d0"].outboxes["router-0"].put(stray)
    await on["d0"].until(lambda p: len(p.stops) == 1)
    [answer] = await on.client.complete(token_ids=PROMPT, max_tokens=3, seed=3)
    assert list(answer.token_ids) == expected(PROMPT, 3, seed=3)
    assert [(stop.handoff_id, stop.fence.attempt) for stop in on["d0"].stops] == [("who/0", 2)]


async def test_refused_when_full(stage: OpenStage) -> None:
    on = await stage("pd", config=RouterConfig(max_running=1, max_queued=1))
    gate = _set(on["p0"], "prefill_gate")
    first = asyncio.ensure_future(on.client.complete(token_ids=PROMPT, max_tokens=2))
    await gate.wait_reached()
    second = asyncio.ensure_future(on.client.complete(token_ids=PROMPT, max_tokens=2))
    async with raw(on) as channel:
        stub = cluster_pb2_grpc.ClusterStub(channel)
        status = cluster_pb2.StatusReply()
        while status.num_queued < 1:
            status = await stub.Status(cluster_pb2.StatusRequest(), timeout=BOUND_S)
        assert (status.num_requests, status.num_queued) == (1, 1)
        names = [instance.instance_id for instance in status.instances]
        assert names == ["d0", "p0"]
        assert all(instance.connected for instance in status.instances)
        assert all(instance.HasField("integrity") for instance in status.instances)
    with pytest.raises(Saturated) as caught:
        await on.client.complete(token_ids=PROMPT, max_tokens=2)
    assert caught.value.retry_after_s > 0
    gate.open.set()
    await first
    await second


async def test_drain_finishes_the_old_and_refuses_the_new(stage: OpenStage) -> None:
    on = await stage("pd")
    gate = on["d0"].script.token_gates.setdefault(2, Gate())
    first = asyncio.ensure_future(
        on.client.complete(token_ids=PROMPT, max_tokens=5, seed=3, timeout_s=BOUND_S)
    )
    await gate.wait_reached()
    async with raw(on) as channel:
        stub = cluster_pb2_grpc.ClusterStub(channel)
        await stub.Drain(cluster_pb2.DrainRequest(timeout_s=5.0), timeout=BOUND_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _ask_until_refused(channel)
        assert isinstance(error_from(caught.value), Draining)
        gate.open.set()
        [answer] = await first
    assert list(answer.token_ids) == expected(PROMPT, 5, seed=3)
    async with asyncio.timeout(BOUND_S):
        await on.routers[0].task


async def _ask_until_refused(channel: grpc.aio.Channel) -> None:
    """The drain begins on another task than the one that answered."""
    while True:
        await read_all(channel, request(stop={"max_tokens": 1}))


async def test_no_cluster_no_answer(stage: OpenStage) -> None:
    on = await stage("")
    with pytest.raises(NoInstance):
        await on.client.complete(token_ids=PROMPT, max_tokens=2)


async def test_sync_client(stage: OpenStage) -> None:
    on = await stage("pd")
    address = on.routers[0].address

    def ask() -> list[int]:
        token_ids: list[int] = []
        with Client([address]) as client:
            for event in client.generate(token_ids=PROMPT, max_tokens=6, seed=3):
                token_ids += event.token_ids if isinstance(event, Delta) else ()
            # Leaving early cancels.
            for event in client.generate(token_ids=PROMPT, max_tokens=6, seed=3):
                if isinstance(event, Delta):
                    break
            [again] = client.complete("w5 w6 w7", max_tokens=6, seed=3)
        assert list(again.token_ids) == token_ids
        return token_ids

    assert await asyncio.to_thread(ask) == expected(PROMPT, 6, seed=3)


async def test_chat_and_text_are_tokenized_here(stage: OpenStage) -> None:
    on = await stage("pd")
    await on.client.complete("w5 w6", max_tokens=1)
    await on.client.complete(messages=[{"role": "user", "content": "w7 w8"}], max_tokens=1)
    prompts = [list(prefill.work.prompt_token_ids) for prefill in on["p0"].prefills]
    assert prompts == [[5, 6], [7, 8]]


async def test_timing_adds_up(stage: OpenStage) -> None:
    on = await stage("pd")
    events = [e async for e in on.client.generate(token_ids=PROMPT, max_tokens=6, seed=3)]
    finished = events[-1]
    assert isinstance(finished, Finished)
    timing = finished.timing
    assert (timing.prefill_instance_id, timing.decode_instance_id) == ("p0", "d0")
    assert 0 <= timing.router_queue_s <= timing.ttft_s <= timing.e2e_s
    assert timing.ttft_s + timing.tpot_s * 5 == pytest.approx(timing.e2e_s, abs=1e-6)
    assert timing.prefill.compute_s == 0.002


async def test_unused_client_needs_an_address() -> None:
    with pytest.raises(Exception, match="at least one"):
        AsyncClient([])
