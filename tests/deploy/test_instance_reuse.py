"""What is cached where it is needed does not travel: in neither direction, whatever happens."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio

from core.ids import InstanceId
from core.kv_layout import KvLayout
from core.member import Role
from core.request import Fence
from core.work import WorkRequest
from deploy.assembly import Compute
from deploy.instance import InstanceSpec, load_compute
from deploy.tiny_model import write_tiny_llama
from rpc.pb import workers_pb2 as pb
from tests.deploy.instances import (
    CONFIG,
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
from tests.worker_host.fake_engine import FAKE_SPEC, expected_tokens

SIZE = CONFIG.engine.block_size
LAYOUT = KvLayout.of(FAKE_SPEC, SIZE)
PATIENT = replace(CONFIG, handoff=replace(CONFIG.handoff, unknown_handoff_wait_s=10.0))
TEN = tuple(range(1, 11))
REST = tuple(expected_tokens(TEN, 6))


@dataclass
class FetchPays:
    """Whatever can be fetched is."""

    bytes_fetched: list[int] = field(default_factory=list)

    def compute_s(self, num_tokens: int) -> float:
        """See Costs."""
        return float(num_tokens)

    def fetch_s(self, num_bytes: int) -> float:
        """See Costs."""
        del num_bytes
        return 0.0

    def computed(self, num_tokens: int, seconds: float) -> None:
        """See Costs."""

    def fetched(self, num_bytes: int, seconds: float) -> None:
        """See Costs."""
        del seconds
        self.bytes_fetched.append(num_bytes)

    def not_fetched(self) -> None:
        """See Costs."""


@dataclass(frozen=True)
class Told:
    """What came of one request."""

    token_ids: list[int]
    prefill: pb.PrefillToken
    handoff: pb.Output


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


async def ask(
    prefill: Running, decode: Running, request: WorkRequest, num_cached_tokens: int = 0
) -> Told:
    """One request to its end; with cached tokens, prefill is told that decode has them."""
    told = prefill_request(
        request,
        cached_at=decode if num_cached_tokens else None,
        num_cached_tokens=num_cached_tokens,
    )
    async with subscribed(decode) as router:
        await decode.decode.Decode(decode_request(request, prefill))
        prefill_events = await events(prefill.prefill.Prefill(told))
        heard = router.heard(request.handoff_id)
        await router.until(lambda: heard.is_over)
    assert not heard.error
    (handoff,) = [output for output in heard.outputs if output.HasField("timing")]
    return Told(heard.token_ids, prefill_events[1].token, handoff)


# --- decode has it already --------------------------------------------------------------------

SECOND = [
    # id                                second prompt, tenant, tokens that are not sent
    ("the same", TEN, "", 8),
    ("the same in whole blocks", TEN[:8], "", 8),
    ("the answer goes on", (*TEN, *REST, 7, 8), "", 12),
    ("changed in the second block", (*TEN[:4], 50, *TEN[5:]), "", 4),
    ("changed in its first token", (50, *TEN[1:]), "", 0),
    ("another tenant's", TEN, "other", 0),
]


@pytest.mark.parametrize(
    ("prompt", "tenant", "num_reused"), [c[1:] for c in SECOND], ids=[c[0] for c in SECOND]
)
async def test_only_what_decode_has_not_is_sent(
    prefill: Running, decode: Running, prompt: tuple[int, ...], tenant: str, num_reused: int
) -> None:
    first = await ask(prefill, decode, work(TEN))
    assert first.token_ids == list(REST)
    assert first.handoff.timing.num_reused_tokens == 0
    second = await ask(prefill, decode, work(prompt, handoff_id="second/0", tenant=tenant))
    assert second.token_ids == expected_tokens(prompt, 6)
    timing = second.handoff.timing
    assert (timing.num_kv_tokens, timing.num_reused_tokens) == (len(prompt), num_reused)
    assert timing.num_kv_bytes == (len(prompt) - num_reused) * LAYOUT.bytes_per_token
    await prefill.all_returned()
    await decode.all_returned()


async def test_without_a_prefix_cache_everything_is_sent(prefill: Running) -> None:
    config = replace(CONFIG, engine=replace(CONFIG.engine, prefix_cache=False))
    async with instance(Role.DECODE, config) as decode:
        for name in ("a/0", "b/0"):
            told = await ask(prefill, decode, work(TEN, handoff_id=name))
            assert told.handoff.timing.num_kv_bytes == 10 * LAYOUT.bytes_per_token
        await decode.all_returned()


async def test_answers_share_the_blocks_of_their_prompt(prefill: Running) -> None:
    """Both run at once: of five blocks each they have four in common, of seven in all."""
    config = replace(CONFIG, engine=replace(CONFIG.engine, num_blocks=7, num_swap_blocks=0))
    prompt = tuple(range(1, 18))
    async with instance(Role.DECODE, config) as decode:
        await ask(prefill, decode, work(prompt, max_tokens=4))
        requests = [work(prompt, handoff_id=f"{n}/0", max_tokens=4) for n in range(2)]
        async with subscribed(decode) as router, asyncio.TaskGroup() as group:
            heard = [router.heard(request.handoff_id) for request in requests]
            with decode.runner.holding():
                for request in requests:
                    await decode.decode.Decode(decode_request(request, prefill))
                    told = prefill_request(request)
                    group.create_task(events(prefill.prefill.Prefill(told)))
                await router.until(lambda: all(each.is_committed for each in heard))
            await router.until(lambda: all(each.is_over for each in heard))
        assert [each.token_ids for each in heard] == [expected_tokens(prompt, 4)] * 2
        await decode.all_returned()


async def test_a_retarget_keeps_what_is_shared(prefill: Running, decode: Running) -> None:
    await ask(prefill, decode, work(TEN))
    request = work(TEN, handoff_id="second/0", forced=REST[:2], max_tokens=6)
    async with instance(Role.PREFILL) as doomed, subscribed(decode) as router:
        heard = router.heard(request.handoff_id)
        with doomed.runner.holding(after_layer=1):
            call = doomed.prefill.Prefill(prefill_request(request))
            await decode.decode.Decode(decode_request(request, doomed))
            await doomed.runner.held()
            await _until_reserved(decode)
            wrong = replace(request, fence=Fence(0, 2), output_token_ids=(REST[0], 199))
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await decode.decode.Retarget(retarget_request(wrong, prefill))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            call.cancel()
            await router.until(lambda: heard.kv_lost == 1)
        again = replace(request, fence=Fence(0, 2), output_token_ids=REST[:3])
        await decode.decode.Retarget(retarget_request(again, prefill))
        await events(prefill.prefill.Prefill(prefill_request(again)))
        await router.until(lambda: heard.is_over)
        assert heard.tokens == dict(enumerate(REST[3:], 3))
        assert sum(output.timing.num_reused_tokens for output in heard.outputs) == 12
        await doomed.all_returned()
    await prefill.all_returned()
    await decode.all_returned()


async def _until_reserved(decode: Running) -> None:
    """Ask until blocks are held for what is coming in."""
    async with asyncio.timeout(WAIT_S):
        while not (await decode.status()).integrity.blocks["owned"]:
            pass


@pytest.mark.parametrize("seed", range(4))
async def test_any_schedule_in_little_memory(seed: int) -> None:
    """Chats that go on and branch, some stopped or cancelled: right tokens, no block lost."""
    chance = random.Random(seed)
    small = replace(PATIENT, engine=replace(CONFIG.engine, num_blocks=20, num_swap_blocks=12))
    chats = [_some_tokens(chance, 10)]
    num_reused = 0
    async with (
        instance(Role.PREFILL, PATIENT, costs=FetchPays()) as prefill,
        instance(Role.PREFILL, PATIENT) as other,
        instance(Role.DECODE, small) as decode,
        subscribed(decode) as router,
    ):
        for wave in range(8):
            asked: list[WorkRequest] = []
            chats = [_some_tokens(chance, 10), *(chat for chat in chats if len(chat) < 50)]
            async with asyncio.TaskGroup() as group:
                for n in range(4):
                    prompt = (*chance.choice(chats), *_some_tokens(chance, n))
                    request = work(
                        prompt, handoff_id=f"{wave}-{n}/0", max_tokens=chance.randrange(2, 12)
                    )
                    by = chance.choice((prefill, other))
                    await decode.decode.Decode(decode_request(request, by))
                    # A router may be wrong about what is cached.
                    told = prefill_request(request, cached_at=decode, num_cached_tokens=99)
                    call = by.prefill.Prefill(told)
                    if chance.random() < 0.5:
                        await decode.status()
                    if chance.random() < 0.25:
                        await decode.decode.Stop(stop_request(request))
                        call.cancel()
                    else:
                        asked.append(request)
                        group.create_task(events(call))
                heard = [router.heard(request.handoff_id) for request in asked]
                await router.until(lambda heard=heard: all(one.is_over for one in heard))  # type: ignore[misc]
            for request, one in zip(asked, heard, strict=True):
                want = expected_tokens(request.prompt_token_ids, request.stop.max_tokens)
                assert one.token_ids == want
                chats.append((*request.prompt_token_ids, *want))
                num_reused += sum(output.timing.num_reused_tokens for output in one.outputs)
        assert num_reused
        for running in (prefill, other, decode):
            await running.all_returned()


def _some_tokens(chance: random.Random, num_tokens: int) -> tuple[int, ...]:
    return tuple(chance.randrange(1, 90) for _ in range(num_tokens))


# --- prefill gets it from decode --------------------------------------------------------------


async def chat(prefill: Running, decode: Running, compute: Compute | None = None) -> list[Told]:
    """Five turns; the router knows what decode caches."""
    prompt, num_known, turns = TEN, 0, []
    for turn in range(5):
        request = work(prompt, handoff_id=f"turn-{turn}/0", max_tokens=7)
        if compute is not None:
            request = replace(request, fingerprint=compute.fingerprint)
        told = await ask(prefill, decode, request, num_known)
        turns.append(told)
        # The last token's KV is not computed, and a block has a name once it is full.
        num_known = (len(prompt) + 6) // SIZE * SIZE
        prompt = (*prompt, *told.token_ids, 30 + turn, 31 + turn)
    await prefill.all_returned()
    await decode.all_returned()
    return turns


async def test_each_turn_of_a_chat_moves_what_is_new_in_each_direction(decode: Running) -> None:
    costs = FetchPays()
    async with instance(Role.PREFILL, PATIENT, costs=costs) as prefill:
        turns = await chat(prefill, decode)
        prompt: tuple[int, ...] = TEN
        num_there = num_here = 0
        for number, told in enumerate(turns):
            assert told.token_ids == expected_tokens(prompt, 7)
            timing = told.handoff.timing
            assert timing.num_reused_tokens == num_there
            assert timing.num_kv_bytes == (len(prompt) - num_there) * LAYOUT.bytes_per_token
            assert told.prefill.timing.num_fetched_tokens == num_there - num_here
            assert told.prefill.timing.num_hit_tokens == num_here
            num_here = len(prompt) // SIZE * SIZE
            num_there = (len(prompt) + 6) // SIZE * SIZE
            prompt = (*prompt, *told.token_ids, 30 + number, 31 + number)
        fetched = [told.prefill.timing.num_fetched_tokens for told in turns]
        want = [num * LAYOUT.bytes_per_token for num in fetched if num]
        assert costs.bytes_fetched == want
        assert len(want) == 4


async def test_a_real_chat_says_what_it_would_without_caches(tmp_path: Path) -> None:
    computes = [_tiny(tmp_path) for _ in range(3)]
    uncached = replace(CONFIG, engine=replace(CONFIG.engine, prefix_cache=False))
    async with (
        instance(Role.PREFILL, PATIENT, computes[0], FetchPays()) as prefill,
        instance(Role.DECODE, PATIENT, computes[1]) as decode,
        instance(Role.MIXED, uncached, computes[2]) as alone,
    ):
        turns = await chat(prefill, decode, computes[0])
        assert all(told.prefill.timing.num_fetched_tokens for told in turns[1:])
        plain = await chat(alone, alone, computes[2])
        assert [told.token_ids for told in turns] == [told.token_ids for told in plain]


def _tiny(tmp_path: Path) -> Compute:
    """Of one model, each with KV of its own."""
    model_dir = tmp_path / "tiny"
    if not model_dir.exists():
        write_tiny_llama(model_dir)
    spec = InstanceSpec(
        instance_id=InstanceId("tiny"), role=Role.MIXED, model_dir=model_dir, config=PATIENT
    )
    return load_compute(spec)


async def test_a_peer_that_has_nothing_costs_nothing_but_a_moment(decode: Running) -> None:
    async with instance(Role.PREFILL, PATIENT, costs=FetchPays()) as prefill:
        told = await ask(prefill, decode, work(TEN), num_cached_tokens=8)
        assert told.token_ids == list(REST)
        assert told.prefill.timing.num_fetched_tokens == 0
        await prefill.all_returned()


async def test_a_peer_that_is_gone_does_not_fail_the_request(decode: Running) -> None:
    async with (
        instance(Role.PREFILL, PATIENT, costs=FetchPays()) as prefill,
        instance(Role.DECODE) as gone,
    ):
        await gone.kill()
        request = work(TEN)
        call = prefill.prefill.Prefill(
            prefill_request(request, cached_at=gone, num_cached_tokens=8)
        )
        async with subscribed(decode) as router:
            await decode.decode.Decode(decode_request(request, prefill))
            await events(call)
            heard = router.heard(request.handoff_id)
            await router.until(lambda: heard.is_over)
        assert heard.token_ids == list(REST)
        await prefill.all_returned()
