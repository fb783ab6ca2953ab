"""What an instance refuses, ends and waits for: memory, deadlines, queues, strangers, drains."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import grpc.aio
import pytest

from core.member import Role
from rpc.pb import workers_pb2 as pb
from rpc.pb.cluster_pb2 import DrainRequest
from rpc.pb.cluster_pb2_grpc import ClusterStub
from tests.deploy.instances import (
    CONFIG,
    WAIT_S,
    Running,
    decode_request,
    events,
    instance,
    prefill_request,
    read,
    subscribed,
    work,
)
from tests.worker_host.fake_engine import expected_tokens

SMALL = replace(CONFIG, engine=replace(CONFIG.engine, num_blocks=8))
"""32 tokens."""

LONG = tuple(range(1, 27))


async def refused(
    call: "grpc.aio.UnaryUnaryCall[Any, Any] | grpc.aio.UnaryStreamCall[Any, Any]",
) -> grpc.aio.AioRpcError:
    """How a call failed."""
    try:
        async with asyncio.timeout(WAIT_S):
            if isinstance(call, grpc.aio.UnaryStreamCall):
                async for _ in call:
                    pass
            else:
                await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call was not refused")


# --- refused at the door ----------------------------------------------------------------------


async def test_a_prompt_that_can_never_fit() -> None:
    async with instance(Role.PREFILL, SMALL) as prefill:
        error = await refused(prefill.prefill.Prefill(prefill_request(work(tuple(range(33))))))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "33 tokens need 9 KV blocks of 4, this instance has 8" in (error.details() or "")
        await prefill.all_returned()


async def test_an_answer_that_can_never_fit() -> None:
    async with instance(Role.DECODE, SMALL) as decode:
        request = work(LONG, max_tokens=8)
        error = await refused(decode.decode.Decode(decode_request(request, _elsewhere(decode))))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        fits = work(LONG, max_tokens=7)
        await decode.decode.Decode(decode_request(fits, _elsewhere(decode)))


async def test_another_fingerprint() -> None:
    async with instance(Role.PREFILL) as prefill:
        for call in (
            prefill.prefill.Prefill(prefill_request(work(fingerprint="other"))),
            prefill.decode.Decode(decode_request(work(fingerprint="other"), prefill)),
        ):
            error = await refused(call)
            assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_queues_are_bounded() -> None:
    config = replace(CONFIG, worker=replace(CONFIG.worker, max_queued=1))
    async with instance(Role.PREFILL, config) as prefill, AsyncExitStack() as stack:
        stack.enter_context(prefill.runner.holding())
        calls = []
        for n in range(2):
            request = prefill_request(work(LONG, handoff_id=f"request-{n}/0"))
            calls.append(prefill.prefill.Prefill(request))
            async with asyncio.timeout(WAIT_S):
                # Each before the next: calls of one moment arrive in any order.
                while (await prefill.status()).load.num_prefilling <= n:
                    pass
        await prefill.runner.held()
        error = await refused(prefill.prefill.Prefill(prefill_request(work(handoff_id="c/0"))))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in calls:
            call.cancel()


async def test_a_stale_attempt() -> None:
    async with instance(Role.PREFILL) as prefill:
        newer = prefill.prefill.Prefill(prefill_request(work(attempt=2)))
        await read(newer)
        error = await refused(prefill.prefill.Prefill(prefill_request(work(attempt=1))))
        assert error.code() is grpc.StatusCode.ABORTED
        newer.cancel()
        await prefill.all_returned()


async def test_a_later_attempt_supersedes() -> None:
    async with instance(Role.PREFILL) as prefill:
        older = prefill.prefill.Prefill(prefill_request(work(attempt=1)))
        await read(older)
        newer = prefill.prefill.Prefill(prefill_request(work(attempt=2)))
        while not (told := await read(older)).HasField("ended"):
            pass
        assert told.ended.outcome == pb.LEASE_OUTCOME_SUPERSEDED
        newer.cancel()
        await prefill.all_returned()


async def test_another_protocol() -> None:
    async with instance(Role.DECODE) as decode:
        call = decode.decode.Subscribe()
        await call.write(pb.SubscribeRequest(router_id="router-0", protocol_version=99))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call.read()
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION


# --- ended in time ----------------------------------------------------------------------------


async def test_only_the_first_token() -> None:
    async with instance(Role.PREFILL) as prefill:
        request = prefill_request(work(), only_first_token=True)
        told = await events(prefill.prefill.Prefill(request))
        assert told[1].token.token_id == expected_tokens(work().prompt_token_ids, 1)[0]
        assert told[2].ended.outcome == pb.LEASE_OUTCOME_ABORTED
        await prefill.all_returned()


async def test_a_lease_that_nobody_renews_expires() -> None:
    config = replace(CONFIG, handoff=replace(CONFIG.handoff, lease_ttl_s=0.1))
    async with instance(Role.PREFILL, config) as prefill:
        told = await events(prefill.prefill.Prefill(prefill_request(work())))
        assert told[-1].ended.outcome == pb.LEASE_OUTCOME_EXPIRED
        await prefill.all_returned()


async def test_deadlines() -> None:
    request = work(timeout_s=0.1)
    async with instance(Role.PREFILL) as prefill, instance(Role.DECODE) as decode:
        async with subscribed(decode) as router:
            await decode.decode.Decode(decode_request(request, prefill))
            with prefill.runner.holding():
                error = await refused(prefill.prefill.Prefill(prefill_request(request)))
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            heard = router.heard(request.handoff_id)
            await router.until(lambda: heard.is_over)
            assert heard.error == "DEADLINE_EXCEEDED"
        await prefill.all_returned()
        await decode.all_returned()


async def test_a_reservation_is_given_up_when_no_prefill_comes() -> None:
    handoff = replace(CONFIG.handoff, unknown_handoff_wait_s=0.1, retarget_wait_s=0.1)
    config = replace(CONFIG, handoff=handoff)
    async with instance(Role.DECODE, config) as decode, instance(Role.PREFILL, config) as prefill:
        async with subscribed(decode) as router:
            await decode.decode.Decode(decode_request(work(), prefill))
            heard = router.heard(work().handoff_id)
            await router.until(lambda: heard.is_over)
            assert heard.kv_lost
            assert heard.error == "UNAVAILABLE"
        await decode.all_returned()


async def test_a_router_that_acknowledges_nothing_loses_its_requests() -> None:
    config = replace(CONFIG, worker=replace(CONFIG.worker, max_unacked_tokens=20))
    async with instance(Role.PREFILL) as prefill, instance(Role.DECODE, config) as decode:
        request = work(max_tokens=200)
        async with subscribed(decode) as router:
            await decode.decode.Decode(decode_request(request, prefill))
            await events(prefill.prefill.Prefill(prefill_request(request)))
            heard = router.heard(request.handoff_id)
            await router.until(lambda: heard.is_over)
            assert heard.error == "RESOURCE_EXHAUSTED"
            assert heard.token_ids == expected_tokens(request.prompt_token_ids, 21)
        await decode.all_returned()


async def test_a_killed_prefill_is_told_as_lost() -> None:
    async with (
        instance(Role.PREFILL) as prefill,
        instance(Role.DECODE) as decode,
        subscribed(decode) as router,
    ):
        with prefill.runner.holding(after_layer=0):
            await decode.decode.Decode(decode_request(work(), prefill))
            call = prefill.prefill.Prefill(prefill_request(work()))
            await prefill.runner.held()
            await prefill.kill()
            heard = router.heard(work().handoff_id)
            await router.until(lambda: bool(heard.kv_lost))
            assert heard.outputs[0].kv_lost == pb.KV_LOST_REASON_PEER
        assert (await refused(call)).code() is grpc.StatusCode.UNAVAILABLE


# --- memory -----------------------------------------------------------------------------------


async def test_prompts_wait_for_memory_in_order() -> None:
    async with instance(Role.PREFILL, SMALL) as prefill:
        first = prefill.prefill.Prefill(prefill_request(work(LONG)))
        assert [(await read(first)).WhichOneof("event") for _ in range(2)] == ["started", "token"]
        other = LONG[::-1]  # not a prefix hit, which would need one block
        second = prefill.prefill.Prefill(prefill_request(work(other, handoff_id="second/0")))
        third = prefill.prefill.Prefill(prefill_request(work((1,), handoff_id="third/0")))
        while (await prefill.status()).load.num_prefilling < 2:
            pass
        assert len(prefill.runner.batches) == 4, "neither has begun: the third waits behind"
        first.cancel()
        async with asyncio.timeout(WAIT_S):
            started = [await read(call) for call in (second, third)]
        assert all(event.HasField("started") for event in started)
        for call in (second, third):
            call.cancel()
        await prefill.all_returned()


async def test_a_handoff_waits_for_room() -> None:
    async with instance(Role.PREFILL) as prefill, instance(Role.DECODE, SMALL) as decode:
        requests = [work(LONG, handoff_id=f"request-{n}/0") for n in range(3)]
        async with subscribed(decode) as router, asyncio.TaskGroup() as group:
            for request in requests:
                await decode.decode.Decode(decode_request(request, prefill))
                group.create_task(events(prefill.prefill.Prefill(prefill_request(request))))
            await router.until(lambda: all(router.heard(r.handoff_id).is_over for r in requests))
            for request in requests:
                want = expected_tokens(LONG, 6)
                assert router.heard(request.handoff_id).token_ids == want
        await decode.all_returned()
        await prefill.all_returned()


async def test_the_later_one_is_preempted_and_the_earlier_one_ends() -> None:
    config = replace(SMALL, engine=replace(SMALL.engine, num_swap_blocks=0))
    async with instance(Role.PREFILL) as prefill, instance(Role.DECODE, config) as decode:
        requests = [
            work(tuple(range(n, n + 12)), handoff_id=f"request-{n}/0", max_tokens=20)
            for n in (1, 2)
        ]
        async with subscribed(decode) as router:
            with decode.runner.holding():
                for request in requests:
                    await decode.decode.Decode(decode_request(request, prefill))
                    await events(prefill.prefill.Prefill(prefill_request(request)))
                await decode.runner.held()
            heard = [router.heard(request.handoff_id) for request in requests]
            await router.until(lambda: all(one.is_over for one in heard))
        assert heard[0].token_ids == expected_tokens(requests[0].prompt_token_ids, 20)
        assert heard[1].error == "RESOURCE_EXHAUSTED"
        told = heard[1].token_ids
        assert told == expected_tokens(requests[1].prompt_token_ids, 20)[: len(told)]
        await decode.all_returned()


# --- leaving ----------------------------------------------------------------------------------


async def test_a_drain_refuses_the_new_and_finishes_the_old() -> None:
    async with instance(Role.PREFILL) as prefill, instance(Role.DECODE) as decode:
        request = work(max_tokens=30)
        async with subscribed(decode) as router:
            with decode.runner.holding():
                await decode.decode.Decode(decode_request(request, prefill))
                await events(prefill.prefill.Prefill(prefill_request(request)))
                await decode.runner.held()
                await ClusterStub(decode.channel).Drain(DrainRequest(timeout_s=WAIT_S))
                late = decode_request(work(handoff_id="late/0"), prefill)
                error = await refused(decode.decode.Decode(late))
                assert error.code() is grpc.StatusCode.UNAVAILABLE
            heard = router.heard(request.handoff_id)
            await router.until(lambda: heard.is_over)
            assert heard.token_ids == expected_tokens(request.prompt_token_ids, 30)
            assert router.frames[-1].load.draining
            await router.until(lambda: router.is_over)
            async with asyncio.timeout(WAIT_S):
                await asyncio.wait((decode.task,))


async def test_a_step_that_fails_ends_the_instance() -> None:
    async def run() -> None:
        async with instance(Role.PREFILL) as prefill:
            prefill.runner.error = ArithmeticError("broken")
            call = prefill.prefill.Prefill(prefill_request(work()))
            await asyncio.wait((prefill.task,), timeout=WAIT_S)
            call.cancel()

    with pytest.raises(ExceptionGroup) as raised:
        await run()
    assert raised.group_contains(ArithmeticError)


def _elsewhere(decode: Running) -> Running:
    """Another source than itself, where nobody listens."""
    return replace(decode, address="127.0.0.1:1")
