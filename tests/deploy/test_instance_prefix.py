"""Prefixes over whole instances: fewer tokens computed, the same tokens told."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import pytest_asyncio

from core.errors import ConfigError
from core.ids import InstanceId
from core.member import Role
from core.work import WorkRequest
from deploy.assembly import Parts
from deploy.instance import InstanceSpec, load_compute, shared_of
from deploy.tiny_model import write_tiny_llama
from registry.api import RegistryUnavailable, SharedKeyDamaged
from registry.memory import MemoryRegistry, MemoryStore
from rpc.pb import workers_pb2 as pb
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

TEN = tuple(range(1, 11))


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


async def answer(
    prefill: Running, decode: Running, requests: list[WorkRequest]
) -> list[pb.PrefillToken]:
    """All at once; every answer must be right. What prefill told of each."""
    async with subscribed(decode) as router, asyncio.TaskGroup() as group:
        told = []
        for request in requests:
            await decode.decode.Decode(decode_request(request, prefill))
            call = prefill.prefill.Prefill(prefill_request(request))
            told.append(group.create_task(events(call)))
        await router.until(lambda: all(router.heard(r.handoff_id).is_over for r in requests))
        for request in requests:
            want = expected_tokens(request.prompt_token_ids, request.stop.max_tokens)
            assert router.heard(request.handoff_id).token_ids == want
    return [task.result()[1].token for task in told]


async def until_known(prefill: Running, num_prompts: int) -> None:
    """Ask until the calls and cancels sent before have arrived; bounded."""
    async with asyncio.timeout(WAIT_S):
        while (await prefill.status()).integrity.num_prefills != num_prompts:
            pass


SECOND = [
    # id                               second prompt          tenant  hits
    ("the same", TEN, "", 8),
    ("the same in whole blocks", TEN[:8], "", 7),
    ("longer", (*TEN, 11, 12, 13), "", 8),
    ("changed in the second block", (*TEN[:4], 50, *TEN[5:]), "", 4),
    ("changed in its first token", (50, *TEN[1:]), "", 0),
    ("another tenant's", TEN, "other", 0),
]


@pytest.mark.parametrize(
    ("prompt", "tenant", "num_hits"), [case[1:] for case in SECOND], ids=[c[0] for c in SECOND]
)
async def test_a_second_prompt(
    prefill: Running, decode: Running, prompt: tuple[int, ...], tenant: str, num_hits: int
) -> None:
    await answer(prefill, decode, [work(TEN)])
    before = sum(prefill.runner.num_tokens)
    request = work(prompt, handoff_id="second/0", tenant=tenant)
    (told,) = await answer(prefill, decode, [request])
    assert told.timing.num_hit_tokens == num_hits
    assert sum(prefill.runner.num_tokens) - before == len(prompt) - num_hits
    load = (await prefill.status()).load
    assert (load.num_queried_tokens, load.num_hit_tokens) == (10 + len(prompt), num_hits)
    assert load.num_cached_blocks > 0
    assert load.num_free_blocks == load.num_blocks
    await prefill.all_returned()
    await decode.all_returned()


async def test_without_a_prefix_cache(decode: Running) -> None:
    config = replace(CONFIG, engine=replace(CONFIG.engine, prefix_cache=False))
    async with instance(Role.PREFILL, config) as prefill:
        for name in ("a/0", "b/0"):
            (told,) = await answer(prefill, decode, [work(TEN, handoff_id=name)])
            assert told.timing.num_hit_tokens == 0
        load = (await prefill.status()).load
        assert (load.num_queried_tokens, load.num_cached_blocks) == (0, 0)
        await prefill.all_returned()


async def test_choices_of_one_prompt_compute_it_once(prefill: Running, decode: Running) -> None:
    prompt = (*TEN, *TEN, 1, 2)
    requests = [work(prompt, handoff_id=f"request/{n}") for n in range(8)]
    await answer(prefill, decode, requests)
    assert sum(prefill.runner.num_tokens) == 22 + 7 * 2
    await prefill.all_returned()
    await decode.all_returned()


async def test_a_choice_takes_over_from_one_that_is_cancelled(prefill: Running) -> None:
    prompt = (*TEN, *TEN, 1, 2)
    with prefill.runner.holding(after_layer=1):
        first = prefill.prefill.Prefill(prefill_request(work(prompt, handoff_id="request/0")))
        await read(first)
        await prefill.runner.held()
        calls = [
            prefill.prefill.Prefill(prefill_request(work(prompt, handoff_id=f"request/{n}")))
            for n in (1, 2)
        ]
        await until_known(prefill, 3)
        first.cancel()
        await until_known(prefill, 2)
    for call in calls:
        assert (await read(call)).HasField("started")
        told = await read(call)
        assert told.token.token_id == expected_tokens(prompt, 1)[0]
        call.cancel()
    # The first one's chunk was nobody's when it returned.
    assert sum(prefill.runner.num_tokens) == 8 + 22 + 2
    await prefill.all_returned()


async def test_a_cached_prefix_gives_way_to_prompts_that_need_the_room(decode: Running) -> None:
    config = replace(CONFIG, engine=replace(CONFIG.engine, num_blocks=8))
    async with instance(Role.PREFILL, config) as prefill:
        prompts = [tuple(range(20 * n, 20 * n + 18)) for n in range(1, 4)]
        for again in range(2):
            for n, prompt in enumerate(prompts):
                await answer(prefill, decode, [work(prompt, handoff_id=f"{again}-{n}/0")])
        # Whoever has been away longest goes first: three that need the room of two miss each other.
        assert sum(prefill.runner.num_tokens) == 6 * 18
        (told,) = await answer(prefill, decode, [work(prompts[-1], handoff_id="last/0")])
        assert told.timing.num_hit_tokens == 16
        await prefill.all_returned()


async def test_a_mixed_instance_starts_from_its_own_prefixes() -> None:
    async with instance(Role.MIXED) as mixed:
        for n in range(3):
            (told,) = await answer(mixed, mixed, [work(TEN, handoff_id=f"request-{n}/0")])
            assert told.timing.num_hit_tokens == (8 if n else 0)
        await mixed.all_returned()


async def test_a_real_model_says_the_same_from_a_prefix(tmp_path: Path) -> None:
    spec = InstanceSpec(
        instance_id=InstanceId("mixed-0"),
        role=Role.MIXED,
        model_dir=write_tiny_llama(tmp_path / "tiny"),
        config=CONFIG,
    )
    compute = load_compute(spec)
    prompts = [tuple(3 + (7 * n + i * i) % 400 for i in range(n)) for n in (4, 7, 8, 23, 24)]
    async with instance(Role.MIXED, CONFIG, compute) as mixed, subscribed(mixed) as router:
        answers, hits = [], []
        for again in range(2):
            for prompt in prompts:
                request = replace(
                    work(prompt, handoff_id=f"{again}-{len(prompt)}/0"),
                    fingerprint=compute.fingerprint,
                )
                await mixed.decode.Decode(decode_request(request, mixed))
                told = await events(mixed.prefill.Prefill(prefill_request(request)))
                heard = router.heard(request.handoff_id)
                await router.until(lambda heard=heard: heard.is_over)  # type: ignore[misc]
                answers.append(heard.token_ids)
                hits.append(told[1].token.timing.num_hit_tokens)
        assert hits == [0, 0, 0, 0, 0, 3, 4, 7, 20, 23]
        assert answers[5:] == answers[:5]
        await mixed.all_returned()


# --- the key behind the names -----------------------------------------------------------------


SPEC = InstanceSpec(instance_id=InstanceId("one"), role=Role.MIXED, model_dir=Path())


async def test_all_instances_of_a_cluster_have_one_key() -> None:
    store, stop = MemoryStore(), asyncio.Event()
    keys = {(await shared_of(SPEC, MemoryRegistry(store), stop)).key for _ in range(3)}
    assert {key.hex() for key in keys} == {store.shared_key}


async def test_without_a_store_each_has_its_own_key_or_the_one_it_is_given() -> None:
    stop, given = asyncio.Event(), replace(SPEC, cluster_key="ab" * 32)
    one, other = [await shared_of(SPEC, None, stop) for _ in range(2)]
    assert one.key != other.key
    assert (await shared_of(given, None, stop)).key == bytes.fromhex(given.cluster_key)
    assert given.cluster_key not in repr(given)
    assert InstanceSpec.from_json(given.to_json()) == given


@pytest.mark.parametrize("text", ["zz", "AB" * 32, "ab" * 31])
def test_a_key_that_is_none_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ConfigError, match="cluster_key") as caught:
        InstanceSpec.from_json(replace(SPEC, cluster_key=text).to_json())
    assert text not in str(caught.value)


@pytest.mark.parametrize("is_damaged", [False, True])
async def test_a_store_that_fails_leaves_no_key(is_damaged: bool) -> None:
    store, stop = MemoryStore(reachable=is_damaged, shared_key="damaged"), asyncio.Event()
    stop.set()  # who waits for it may wait no longer
    with pytest.raises(RegistryUnavailable) as caught:
        await shared_of(SPEC, MemoryRegistry(store), stop)
    assert isinstance(caught.value, SharedKeyDamaged) is is_damaged


async def test_the_key_is_not_shown_with_the_parts() -> None:
    shown = {field.name for field in fields(Parts) if field.repr}
    assert "prefix_key" not in shown


async def test_higher_priority_goes_first(prefill: Running) -> None:
    requests = [
        work(tuple(range(10 * n, 10 * n + 8)), handoff_id=f"request-{n}/0", priority=n)
        for n in range(4)
    ]
    with prefill.runner.holding():
        calls = []
        for n, request in enumerate(requests):
            calls.append(prefill.prefill.Prefill(prefill_request(request)))
            # Each before the next: calls of one moment arrive in any order.
            await until_known(prefill, n + 1)
    for call in calls:
        while not (await read(call)).HasField("token"):
            pass
        call.cancel()
    assert prefill.runner.batches == [[f"request-{n}/0"] for n in (0, 3, 2, 1)]
    await prefill.all_returned()
