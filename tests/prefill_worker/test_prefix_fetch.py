"""A beginning that is cached elsewhere: fetched when it pays, and never a request's undoing."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import pytest

from core.blocks import BlockState, leak_report
from core.clock import ManualClock
from core.config import HandoffConfig
from core.kv_layout import KvLayout
from core.timing import HandoffTiming
from core.work import KvLostReason, Peer, WorkRequest
from kv_transfer.errors import KvLost
from kv_transfer.result import FetchedToken, FetchResult
from kv_transfer.sink import Sink
from prefill_worker.prefix_fetch import AVOID_S, MAX_FETCHES, CachedAt, PrefixFetch
from tests.deploy.instances import work
from tests.prefill_worker.test_costs import Known
from tests.worker_host.fake_engine import FAKE_SPEC
from worker_host.blocks import InstanceBlocks

SIZE = 4
NUM_BLOCKS = 32
LAYOUT = KvLayout.of(FAKE_SPEC, SIZE)
PROMPT = tuple(range(1, 43))
PEER = Peer("decode-0", "127.0.0.1:1")


@dataclass(kw_only=True)
class Rig:
    """An instance's prefix cache, and a peer that caches `num_there` tokens of anything."""

    num_there: int = 40
    costs: Known = field(default_factory=lambda: Known(1.0, 0.0, 0.0))
    error: BaseException | None = None
    """Raised by the peer's end, after room was made."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Fetches wait for it, after room was made."""
    asked: list[int] = field(default_factory=list)
    """`max_tokens` of each fetch."""

    def __post_init__(self) -> None:
        self.gate.set()
        self.clock = ManualClock()
        self.blocks = InstanceBlocks.cached(NUM_BLOCKS, SIZE, bytes(32))
        self.prefixes = PrefixFetch(
            fetches=self,
            blocks=self.blocks,
            layout=LAYOUT,
            costs=self.costs,
            clock=self.clock,
            config=HandoffConfig(),
            own_address="127.0.0.1:2",
        )

    async def run_prefix(
        self,
        sink: Sink,
        peer: Peer,
        *,
        token_ids: Sequence[int],
        tenant: str,
        max_tokens: int,
        reserve: Callable[[Sink], Awaitable[None]],
    ) -> FetchResult:
        """See kv_transfer.fetch.Fetcher."""
        del peer, token_ids, tenant
        self.asked.append(max_tokens)
        sink.announce(min(self.num_there, max_tokens))
        await reserve(sink)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        sink._covered = [(1 << sink.num_tokens) - 1] * LAYOUT.num_layers
        sink.end(sink.fence, 0)
        assert sink.is_whole
        assert sink.commit()
        token = FetchedToken(token_id=0, position=0, finish_reason=None)
        return FetchResult(token=token, timing=HandoffTiming(), is_exact=True)

    async def fetch(
        self, name: str = "a/0", num_tokens: int = 40, request: WorkRequest | None = None
    ) -> range:
        """As the service does; nothing is left of it."""
        request = request or work(PROMPT, handoff_id=name)
        return await self.prefixes.fetch(request, CachedAt(PEER, num_tokens))

    def cache(self, num_tokens: int) -> None:
        """So many tokens of the prompt are here."""
        chain = self.blocks.names("", PROMPT[:num_tokens])
        block_ids = self.blocks.allocate(len(chain), BlockState.OWNED)
        self.blocks.name(chain, block_ids)
        self.blocks.release(block_ids, BlockState.OWNED)

    @property
    def num_hits(self) -> int:
        """Blocks of the prompt that are cached here."""
        return self.blocks.hits(self.blocks.names("", PROMPT)).num_blocks

    def check(self) -> None:
        """Nobody holds a block."""
        self.blocks.allocator.check()
        assert leak_report(self.blocks.allocator.counts(), NUM_BLOCKS) is None
        assert self.prefixes.num_fetches == 0


CASES = [
    # id                              here, there, router's belief, fetched, hits afterwards
    ("nothing is here",                  0, 40, 40, range(40), 10),
    ("a part is here",                  12, 40, 40, range(12, 40), 10),
    ("the peer has less than was said",  0, 20, 40, range(20), 5),
    ("the peer has no more than we",    20, 20, 40, range(0), 5),
    ("all that is said to be there is here", 20, 40, 20, range(0), 5),
    ("the router says more than there is", 0, 40, 10**9, range(40), 10),
    ("a part of a block is not asked for", 0, 40, 7, range(4), 1),
    ("the last block is not full",       0, 18, 40, range(16), 4),
    ("less than a block",                0, 40, 3, range(0), 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("num_here", "num_there", "num_said", "want", "num_hits"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
async def test_what_comes(
    num_here: int, num_there: int, num_said: int, want: range, num_hits: int
) -> None:
    rig = Rig(num_there=num_there)
    rig.cache(num_here)
    assert await rig.fetch(num_tokens=num_said) == want
    assert rig.num_hits == num_hits
    rig.check()


async def test_not_from_ourselves() -> None:
    rig = Rig()
    own = CachedAt(Peer("us", "127.0.0.1:2"), 40)
    assert await rig.prefixes.fetch(work(PROMPT), own) == range(0)
    assert rig.asked == []


async def test_not_when_computing_is_cheaper() -> None:
    rig = Rig(costs=Known(1e-3, 1.0, 0.0))
    assert await rig.fetch() == range(0)
    assert rig.asked == []


@pytest.mark.parametrize("num_held", [NUM_BLOCKS - 10, NUM_BLOCKS - 14])
async def test_not_when_memory_is_short(num_held: int) -> None:
    rig = Rig()
    rig.blocks.allocate(num_held, BlockState.OWNED)
    assert await rig.fetch() == range(0)
    assert rig.asked == []


async def test_not_while_answers_wait_for_memory() -> None:
    rig = Rig()
    rig.blocks.has_waiting_answers = True
    assert await rig.fetch() == range(0)


async def test_memory_that_gets_short_before_the_peer_announces() -> None:
    rig = Rig()
    before = rig.run_prefix

    async def late(*args: Sink, **kwargs: object) -> FetchResult:
        held.extend(rig.blocks.allocate(NUM_BLOCKS - 4, BlockState.OWNED))
        return await before(*args, **kwargs)  # type: ignore[arg-type]

    held: list[int] = []
    rig.prefixes.fetches.run_prefix = late  # type: ignore[method-assign,assignment]
    assert await rig.fetch() == range(0)
    rig.blocks.release(held, BlockState.OWNED)
    rig.check()


FAILURES: list[tuple[str, BaseException, bool]] = [
    # id                     what happens, is the peer avoided afterwards?
    ("nothing is cached", KvLost(KvLostReason.LEASE, "gone"), False),
    ("the peer is dead", KvLost(KvLostReason.PEER, "dead"), True),
    ("the link stalls", KvLost(KvLostReason.STALLED, "slow"), True),
    ("all is damaged", KvLost(KvLostReason.CORRUPT, "damaged"), True),
    ("a bug of ours", RuntimeError("oops"), False),
]


@pytest.mark.parametrize(
    ("error", "is_avoided"), [case[1:] for case in FAILURES], ids=[case[0] for case in FAILURES]
)
async def test_a_failure_leaves_nothing(error: BaseException, is_avoided: bool) -> None:
    rig = Rig(error=error)
    rig.cache(8)
    assert await rig.fetch() == range(0)
    assert rig.num_hits == 2
    rig.check()
    rig.error = None
    assert bool(await rig.fetch("b/0")) is not is_avoided
    rig.clock.advance(AVOID_S)
    await rig.fetch("c/0")
    assert rig.num_hits == 10
    rig.check()


async def test_it_takes_no_longer_than_computing_would() -> None:
    rig = Rig(costs=Known(1e-4, 0.0, 0.0))
    rig.gate.clear()
    assert await rig.fetch() == range(0)
    assert len(rig.asked) == 1
    rig.check()


async def test_a_cancel_gives_everything_back() -> None:
    rig = Rig()
    rig.gate.clear()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(rig.fetch())
        await settle()
        assert rig.blocks.allocator.counts()[BlockState.INCOMING] == 10
        task.cancel()
    assert task.cancelled()
    rig.check()


async def test_choices_of_one_prompt_fetch_it_once() -> None:
    rig = Rig()
    rig.gate.clear()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(rig.fetch(f"a/{n}")) for n in range(4)]
        await settle()
        rig.gate.set()
    assert [task.result() for task in tasks] == [range(40), *[range(0)] * 3]
    assert (rig.asked, rig.num_hits) == ([40], 10)
    rig.check()


async def test_so_many_at_once_and_no_more() -> None:
    rig = Rig(num_there=4)
    rig.gate.clear()
    prompts = [(n, 1, 2, 3, 4) for n in range(1, MAX_FETCHES + 3)]
    async with asyncio.TaskGroup() as group:
        for n, prompt in enumerate(prompts):
            request = work(prompt, handoff_id=f"{n}/0")
            group.create_task(rig.fetch(num_tokens=4, request=request))
        await settle()
        assert len(rig.asked) == MAX_FETCHES
        rig.gate.set()
    rig.check()


async def settle() -> None:
    """Let every callback run that is planned by now."""
    for _ in range(5):
        await asyncio.sleep(0)
