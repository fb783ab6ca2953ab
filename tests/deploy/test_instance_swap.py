"""Instances short of memory: answers go to host memory and come back; and what the cache holds."""

import asyncio
import random
from dataclasses import replace

import pytest

from core.blocks import BlockState
from core.errors import KvCorrupt
from core.member import Role
from core.prefix import PrefixHasher
from core.work import PROTOCOL_VERSION, WorkRequest
from deploy.assembly import Compute
from rpc.pb import workers_pb2 as pb
from tests.decode_worker.rig import WindowRunner, expected
from tests.deploy.instances import (
    CONFIG,
    PREFIX_KEY,
    ROUTER_ID,
    WAIT_S,
    Running,
    Subscribed,
    decode_request,
    events,
    instance,
    prefill_request,
    stop_request,
    subscribed,
    work,
)
from tests.worker_host.fake_engine import FAKE_SPEC, FINGERPRINT, expected_tokens

SMALL = replace(CONFIG, engine=replace(CONFIG.engine, num_blocks=8))
"""32 tokens."""
TWO = [work(tuple(range(n, n + 12)), handoff_id=f"request-{n}/0", max_tokens=20) for n in (1, 2)]
"""Both fit alone, not together."""


async def begin(requests: list[WorkRequest], prefill: Running, decode: Running) -> None:
    """Hand all over; none makes a step before the last has come."""
    with decode.runner.holding():
        for request in requests:
            await decode.decode.Decode(decode_request(request, prefill))
            await events(prefill.prefill.Prefill(prefill_request(request)))
        await decode.runner.held()


async def until_over(router: Subscribed, requests: list[WorkRequest]) -> None:
    """All of them."""
    await router.until(lambda: all(router.heard(r.handoff_id).is_over for r in requests))


async def test_an_answer_waits_in_host_memory_and_goes_on() -> None:
    async with instance(Role.PREFILL) as prefill, instance(Role.DECODE, SMALL) as decode:
        async with subscribed(decode) as router:
            await begin(TWO, prefill, decode)
            await until_over(router, TWO)
            for request in TWO:
                heard = router.heard(request.handoff_id)
                assert heard.error == ""
                assert heard.token_ids == expected_tokens(request.prompt_token_ids, 20)
        await decode.all_returned()
        assert decode.integrity.blocks[BlockState.SWAPPED] == 0


async def test_many_answers_in_little_memory() -> None:
    requests = [
        replace(
            work(
                tuple(range(n, n + 3 + n % 9)), handoff_id=f"request-{n}/0", max_tokens=8 + n % 11
            ),
            tenant="ab"[n % 2],
            priority=n % 3,
        )
        for n in range(1, 25)
    ]
    async with instance(Role.PREFILL) as prefill, instance(Role.DECODE, SMALL) as decode:
        async with subscribed(decode) as router, asyncio.TaskGroup() as group:
            for request in requests:
                await decode.decode.Decode(decode_request(request, prefill))
                group.create_task(events(prefill.prefill.Prefill(prefill_request(request))))
            await until_over(router, requests)
            for request in requests:
                want = expected_tokens(request.prompt_token_ids, request.stop.max_tokens)
                assert router.heard(request.handoff_id).token_ids == want
        await decode.all_returned()
        await prefill.all_returned()


@pytest.mark.parametrize("seed", [1, 13, 18])
async def test_a_mixed_instance_in_little_memory(seed: int) -> None:
    """Leases, reservations and answers wait for each other's blocks; none waits for ever."""
    rng = random.Random(seed)
    config = replace(CONFIG, engine=replace(CONFIG.engine, num_blocks=10))
    lengths = [(rng.randint(1, 12), rng.randint(2, 32)) for _ in range(30)]
    requests = [
        work(
            tuple(rng.choices(range(190), k=k)), handoff_id=f"request-{n}/0", max_tokens=max_tokens
        )
        for n, (k, max_tokens) in enumerate(lengths)
        # Its KV is there twice: leased, and handed over.
        if 2 * k + max_tokens - 1 <= 40
    ]
    async with instance(Role.MIXED, config) as one:
        async with subscribed(one) as router, asyncio.TaskGroup() as group:
            for request in requests:
                await one.decode.Decode(decode_request(request, one))
                group.create_task(events(one.prefill.Prefill(prefill_request(request))))
            await until_over(router, requests)
            for request in requests:
                heard = router.heard(request.handoff_id)
                assert heard.error == ""
                want = expected_tokens(request.prompt_token_ids, request.stop.max_tokens)
                assert heard.token_ids == want
        await one.all_returned()


async def test_a_stop_frees_host_memory() -> None:
    async with instance(Role.PREFILL) as prefill, instance(Role.DECODE, SMALL) as decode:
        async with subscribed(decode) as router:
            await begin(TWO, prefill, decode)
            await router.until(lambda: any(frame.load.num_swapped for frame in router.frames))
            for request in TWO:
                await decode.decode.Stop(stop_request(request))
        await decode.all_returned()
        assert decode.integrity.blocks[BlockState.SWAPPED] == 0


async def test_a_copy_that_fails_ends_one_answer() -> None:
    async with instance(Role.PREFILL) as prefill, instance(Role.DECODE, SMALL) as decode:

        def broken(*_: object) -> memoryview:
            raise KvCorrupt("broken")

        decode.runner.store.gather = broken  # type: ignore[method-assign, assignment]
        async with subscribed(decode) as router:
            await begin(TWO, prefill, decode)
            await until_over(router, TWO)
            first, second = (router.heard(request.handoff_id) for request in TWO)
            assert second.error == KvCorrupt.status
            assert first.token_ids == expected_tokens(TWO[0].prompt_token_ids, 20)
        await decode.all_returned()


@pytest.mark.parametrize("window", [4, 6])
async def test_a_model_with_a_window_needs_no_more_than_that(window: int) -> None:
    requests = [replace(request, fingerprint=FINGERPRINT) for request in TWO]
    async with (
        instance(Role.PREFILL, CONFIG, _sliding(64, window)) as prefill,
        instance(Role.DECODE, SMALL, _sliding(8, window)) as decode,
    ):
        async with subscribed(decode) as router, asyncio.TaskGroup() as group:
            for request in requests:
                await decode.decode.Decode(decode_request(request, prefill))
                group.create_task(events(prefill.prefill.Prefill(prefill_request(request))))
            await until_over(router, requests)
            for request in requests:
                want = expected(request.prompt_token_ids, 20, window)
                assert router.heard(request.handoff_id).token_ids == want
            assert not any(frame.load.num_swapped for frame in router.frames)
        await decode.all_returned()


def _sliding(num_blocks: int, window: int) -> Compute:
    runner = WindowRunner(num_blocks, window)
    model = replace(FAKE_SPEC, window_tokens=window)
    return Compute(model=model, runner=runner, store=runner.store, fingerprint=FINGERPRINT)


# --- what routers are told of the cache ---------------------------------------------------------


async def test_a_router_follows_the_cache() -> None:
    request = work(tuple(range(1, 11)), max_tokens=6)
    async with instance(Role.PREFILL) as prefill, instance(Role.DECODE) as decode:
        call = decode.decode.Subscribe()
        opening = pb.SubscribeRequest(
            router_id=ROUTER_ID, protocol_version=PROTOCOL_VERSION, wants_kv_events=True
        )
        await call.write(opening)
        frames: list[pb.TokenFrame] = []
        known: set[int] = set()
        names = PrefixHasher(PREFIX_KEY, 4).extend(
            "", (), (*request.prompt_token_ids, *expected_tokens(request.prompt_token_ids, 6))
        )
        want = {int.from_bytes(name[:8], "little") for name in names[:3]}
        async with asyncio.timeout(WAIT_S):
            await decode.decode.Decode(decode_request(request, prefill))
            await events(prefill.prefill.Prefill(prefill_request(request)))
            while known != want:
                frame = await call.read()
                assert isinstance(frame, pb.TokenFrame)
                frames.append(frame)
                if frame.kv_events.is_snapshot:
                    known.clear()
                known.difference_update(frame.kv_events.removed)
                known.update(frame.kv_events.stored)
        assert frames[0].kv_events.is_snapshot
        assert not any(frame.kv_events.is_snapshot for frame in frames[1:])
        call.cancel()
        await decode.all_returned()


async def test_who_does_not_ask_is_not_told() -> None:
    async with (
        instance(Role.PREFILL) as prefill,
        instance(Role.DECODE) as decode,
        subscribed(decode) as router,
    ):
        await begin(TWO[:1], prefill, decode)
        await until_over(router, TWO[:1])
        assert not any(frame.HasField("kv_events") for frame in router.frames)
