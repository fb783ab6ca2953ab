"""A request's way over two instances: right tokens, and every block back, whatever happens."""

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
import pytest
import pytest_asyncio

from core.blocks import BlockState
from core.member import Role
from rpc.pb import workers_pb2 as pb
from tests.deploy.instances import (
    WAIT_S,
    Running,
    decode_request,
    events,
    instance,
    prefill_request,
    retarget_request,
    stop_request,
    subscribed,
    work,
)
from tests.worker_host.fake_engine import expected_tokens


@pytest_asyncio.fixture
async def prefill() -> AsyncIterator[Running]:
    """A prefill instance."""
    async with instance(Role.PREFILL) as running:
        yield running


@pytest_asyncio.fixture
async def decode() -> AsyncIterator[Running]:
    """A decode instance."""
    async with instance(Role.DECODE) as running:
        yield running


PROMPT_LENGTHS = [1, 3, 4, 8, 10, 40]


@pytest.mark.parametrize("num_prompt_tokens", PROMPT_LENGTHS)
async def test_the_answer_is_what_one_instance_would_say(
    prefill: Running, decode: Running, num_prompt_tokens: int
) -> None:
    request = work(tuple(range(1, num_prompt_tokens + 1)))
    async with subscribed(decode) as router:
        await decode.decode.Decode(decode_request(request, prefill))
        told = await events(prefill.prefill.Prefill(prefill_request(request)))
        heard = router.heard(request.handoff_id)
        await router.until(lambda: heard.is_over)
    want = expected_tokens(request.prompt_token_ids, 6)
    assert heard.token_ids == want
    assert [event.WhichOneof("event") for event in told] == ["started", "token", "ended"]
    assert told[1].token.token_id == want[0]
    assert told[2].ended.outcome == pb.LEASE_OUTCOME_COMMITTED
    assert sum(output.HasField("timing") for output in heard.outputs) == 1
    await prefill.all_returned()
    await decode.all_returned()


async def test_forced_tokens_count_as_output(prefill: Running, decode: Running) -> None:
    want = expected_tokens(work().prompt_token_ids, 6)
    request = work(forced=tuple(want[:2]), attempt=2)
    async with subscribed(decode) as router:
        await decode.decode.Decode(decode_request(request, prefill))
        told = await events(prefill.prefill.Prefill(prefill_request(request)))
        heard = router.heard(request.handoff_id)
        await router.until(lambda: heard.is_over)
    assert told[1].token.position == 2
    assert heard.tokens == dict(enumerate(want[2:], 2))


async def test_many_at_once_all_get_their_own_tokens(prefill: Running, decode: Running) -> None:
    requests = [
        work(tuple(range(n, n + 3 + n)), handoff_id=f"request-{n}/0", max_tokens=3 + n % 5)
        for n in range(12)
    ]
    async with subscribed(decode) as router, asyncio.TaskGroup() as group:
        for request in requests:
            await decode.decode.Decode(decode_request(request, prefill))
            group.create_task(events(prefill.prefill.Prefill(prefill_request(request))))
        await router.until(lambda: all(router.heard(r.handoff_id).is_over for r in requests))
        for request in requests:
            want = expected_tokens(request.prompt_token_ids, request.stop.max_tokens)
            assert router.heard(request.handoff_id).token_ids == want
    assert max(prefill.runner.num_tokens) <= 8
    await prefill.all_returned()
    await decode.all_returned()


async def test_a_mixed_instance_hands_over_to_itself() -> None:
    async with instance(Role.MIXED) as mixed, subscribed(mixed) as router:
        request = work()
        await mixed.decode.Decode(decode_request(request, mixed))
        await events(mixed.prefill.Prefill(prefill_request(request)))
        heard = router.heard(request.handoff_id)
        await router.until(lambda: heard.is_over)
        assert heard.token_ids == expected_tokens(request.prompt_token_ids, 6)
        await mixed.all_returned()


async def test_an_answer_that_ends_with_its_first_token_never_decodes(
    prefill: Running, decode: Running
) -> None:
    (only,) = expected_tokens(work().prompt_token_ids, 1)
    request = work(stop_token_ids=(only,))
    told = await events(prefill.prefill.Prefill(prefill_request(request)))
    assert told[1].token.finish_reason
    assert told[2].ended.outcome == pb.LEASE_OUTCOME_ABORTED
    await prefill.all_returned()


# --- cancelled at each stage ------------------------------------------------------------------


async def test_cancel_while_the_first_chunk_runs(prefill: Running) -> None:
    with prefill.runner.holding(after_layer=1):
        call = prefill.prefill.Prefill(prefill_request(work()))
        await prefill.runner.held()
        call.cancel()
        await _prefill_is_gone(prefill)
        # The step still writes to them.
        assert prefill.integrity.blocks[BlockState.QUARANTINED] == 3
    await prefill.all_returned()
    assert len(prefill.runner.batches) == 1, "the second chunk was never computed"


async def test_cancel_of_a_lease(prefill: Running) -> None:
    call = prefill.prefill.Prefill(prefill_request(work()))
    async for event in call:
        if event.HasField("token"):
            call.cancel()
            break
    await prefill.all_returned()


async def test_stop_while_the_prefill_computes(prefill: Running, decode: Running) -> None:
    request = work()
    async with subscribed(decode) as router:
        with prefill.runner.holding(after_layer=1):
            call = prefill.prefill.Prefill(prefill_request(request))
            await decode.decode.Decode(decode_request(request, prefill))
            await prefill.runner.held()
            await decode.decode.Stop(stop_request(request))
            await decode.all_returned()
        call.cancel()
        await prefill.all_returned()
        assert not router.heard(request.handoff_id).outputs


async def test_stop_while_decoding_frees_the_blocks_with_the_running_step(
    prefill: Running, decode: Running
) -> None:
    request = work(max_tokens=100)
    async with subscribed(decode) as router:
        with decode.runner.holding():
            await decode.decode.Decode(decode_request(request, prefill))
            await events(prefill.prefill.Prefill(prefill_request(request)))
            await decode.runner.held()
            await decode.decode.Stop(stop_request(request))
            assert decode.integrity.num_decodes == 0
            assert decode.integrity.blocks[BlockState.QUARANTINED] == 3
        await decode.all_returned()
        assert router.heard(request.handoff_id).token_ids == expected_tokens(
            request.prompt_token_ids, 1
        )
    await prefill.all_returned()


async def test_stop_of_an_unknown_handoff_is_remembered(prefill: Running, decode: Running) -> None:
    request = work()
    await decode.decode.Stop(stop_request(request))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await decode.decode.Decode(decode_request(request, prefill))
    assert refused.value.code() is grpc.StatusCode.ABORTED
    await decode.decode.Decode(decode_request(work(attempt=2), prefill))
    await decode.decode.Stop(stop_request(work(attempt=2)))
    await decode.all_returned()


# --- losing the prefill -----------------------------------------------------------------------


async def test_a_lost_prefill_is_replaced_and_the_reservation_kept(
    prefill: Running, decode: Running
) -> None:
    request = work()
    async with instance(Role.PREFILL) as doomed, subscribed(decode) as router:
        heard = router.heard(request.handoff_id)
        with doomed.runner.holding(after_layer=1):
            call = doomed.prefill.Prefill(prefill_request(request))
            await decode.decode.Decode(decode_request(request, doomed))
            await doomed.runner.held()
            call.cancel()
            await router.until(lambda: heard.kv_lost == 1)
        assert decode.integrity.num_incoming == 1
        again = work(attempt=2)
        await decode.decode.Retarget(retarget_request(again, prefill))
        await events(prefill.prefill.Prefill(prefill_request(again)))
        await router.until(lambda: heard.is_over)
        assert heard.token_ids == expected_tokens(request.prompt_token_ids, 6)
        assert [o.fence.attempt for o in heard.outputs if o.committed] == [2]
    await prefill.all_returned()
    await decode.all_returned()


async def test_retarget_with_delivered_tokens(prefill: Running, decode: Running) -> None:
    want = expected_tokens(work().prompt_token_ids, 6)
    async with instance(Role.PREFILL) as doomed, subscribed(decode) as router:
        with decode.runner.holding(), doomed.runner.holding(after_layer=2):
            await decode.decode.Decode(decode_request(work(), doomed))
            call = doomed.prefill.Prefill(prefill_request(work()))
            await doomed.runner.held()
            again = work(attempt=2, forced=tuple(want[:1]))
            # The first fetch is under way: it gives way.
            await decode.decode.Retarget(retarget_request(again, prefill))
            call.cancel()
        await events(prefill.prefill.Prefill(prefill_request(again)))
        heard = router.heard(again.handoff_id)
        await router.until(lambda: heard.is_over)
        assert heard.tokens == dict(enumerate(want[1:], 1))
        await doomed.all_returned()
    await prefill.all_returned()
    await decode.all_returned()


async def test_retarget_of_a_committed_handoff_is_refused(
    prefill: Running, decode: Running
) -> None:
    async with subscribed(decode) as router:
        with decode.runner.holding():
            await decode.decode.Decode(decode_request(work(), prefill))
            await events(prefill.prefill.Prefill(prefill_request(work())))
            await decode.runner.held()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await decode.decode.Retarget(retarget_request(work(attempt=2), prefill))
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        await router.until(lambda: router.heard(work().handoff_id).is_over)


# --- routers ----------------------------------------------------------------------------------


async def test_what_was_not_acknowledged_is_told_again(prefill: Running, decode: Running) -> None:
    request = work()
    want = expected_tokens(request.prompt_token_ids, 6)
    async with subscribed(decode) as first:
        await decode.decode.Decode(decode_request(request, prefill))
        await events(prefill.prefill.Prefill(prefill_request(request)))
        await first.until(lambda: first.heard(request.handoff_id).is_over)
    read = pb.Ack(handoff_id=request.handoff_id, next_position=4)
    async with subscribed(decode, read) as second:
        heard = second.heard(request.handoff_id)
        await second.until(lambda: heard.is_over)
        assert heard.tokens == dict(enumerate(want[4:], 4))
        assert heard.is_committed


async def test_a_newer_subscription_replaces_the_older(decode: Running) -> None:
    async with subscribed(decode) as first, subscribed(decode) as second:
        await first.until(lambda: first.is_over)
        assert not second.is_over


async def test_the_requests_of_a_router_that_is_gone_are_ended(
    prefill: Running, decode: Running
) -> None:
    request = work(max_tokens=200)
    async with subscribed(decode) as router:
        await decode.decode.Decode(decode_request(request, prefill))
        await events(prefill.prefill.Prefill(prefill_request(request)))
        await router.until(lambda: router.heard(request.handoff_id).is_committed)
    await decode.all_returned()


async def test_an_idle_instance_beats(decode: Running) -> None:
    async with subscribed(decode) as router:
        await router.until(lambda: len(router.frames) >= 3)
        assert all(frame.load.num_blocks == 64 for frame in router.frames)


async def _prefill_is_gone(prefill: Running) -> None:
    """Ask until the cancel, sent before the question, has been obeyed."""
    async with asyncio.timeout(WAIT_S):
        while (await prefill.status()).integrity.num_prefills:
            pass
