"""Loans out of the prefix cache: what is lent, when not, and that every block comes back."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import pytest

from core.blocks import BlockState, leak_report
from core.clock import ManualClock
from core.config import HandoffConfig
from core.errors import BatonError, Saturated, StaleFence, UnknownRequest
from core.handoff import SourceState
from core.ids import HandoffId
from core.kv_layout import KvLayout
from core.prefix import KEY_BYTES
from core.request import Fence
from kv_transfer.book import SourceBook
from kv_transfer.shelf import MAX_LOANS, Shelf
from kv_transfer.source import Source
from worker_host.blocks import InstanceBlocks

SIZE = 4
NUM_BLOCKS = 16
LAYOUT = KvLayout(num_layers=2, num_kv_heads=1, head_dim=4, dtype="float32", block_size=SIZE)
ID = HandoffId("r/0")
FENCE = Fence(0, 1)
TEN = tuple(range(10))


class Rig:
    """An instance that caches what it is told to."""

    def __init__(self) -> None:
        self.blocks = InstanceBlocks.cached(NUM_BLOCKS, SIZE, bytes(KEY_BYTES))
        self.clock = ManualClock()
        self.book = SourceBook(
            layout=LAYOUT, blocks=self.blocks, clock=self.clock, config=HandoffConfig()
        )
        self.shelf = Shelf(self.book, self.blocks, self.clock)

    def cache(self, token_ids: Sequence[int], tenant: str = "") -> None:
        """As if an answer with them had ended."""
        chain = self.blocks.names(tenant, token_ids)
        block_ids = self.blocks.allocate(len(chain), BlockState.OWNED)
        self.blocks.name(chain, block_ids)
        self.blocks.release(block_ids, BlockState.OWNED)

    def check(self) -> None:
        """Nothing is lent."""
        self.blocks.allocator.check()
        assert leak_report(self.blocks.allocator.counts(), NUM_BLOCKS) is None
        assert (self.book.num_sources, self.shelf.num_loans) == (0, 0)


CASES = [
    # id                       asked for, tenant, max_tokens, tokens lent
    ("what is cached", TEN, "", 10, 8),
    ("more than is cached", (*TEN, 10, 11, 12), "", 13, 8),
    ("no more than is of use", TEN, "", 7, 4),
    ("up to where they differ", (*TEN[:4], 99, *TEN[5:]), "", 10, 4),
    ("another prompt", (99, *TEN[1:]), "", 10, 0),
    ("another tenant's", TEN, "other", 10, 0),
    ("less than a block", TEN, "", 3, 0),
]


@pytest.mark.parametrize(
    ("token_ids", "tenant", "max_tokens", "num_lent"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_what_is_lent(
    token_ids: tuple[int, ...], tenant: str, max_tokens: int, num_lent: int
) -> None:
    rig = Rig()
    rig.cache(TEN)
    try:
        with rig.shelf.lend(
            ID, FENCE, token_ids=token_ids, tenant=tenant, max_tokens=max_tokens
        ) as source:
            assert source.state is SourceState.LEASED
            assert source.num_tokens == num_lent
            assert source.frontier == [num_lent] * LAYOUT.num_layers
            chain = rig.blocks.names(tenant, token_ids)
            assert list(source.block_ids) == rig.blocks.cache.find(chain)[: num_lent // SIZE]
            assert source.first_token is not None
            assert (source.first_token.token_id, source.first_token.position) == (0, 0)
    except UnknownRequest:
        assert num_lent == 0
    rig.check()


def lend(rig: Rig, handoff_id: str = "r/0", fence: Fence = FENCE) -> AbstractContextManager[Source]:
    """All ten."""
    return rig.shelf.lend(
        HandoffId(handoff_id), fence, token_ids=TEN, tenant="", max_tokens=len(TEN)
    )


def test_what_is_lent_is_not_evicted() -> None:
    rig = Rig()
    rig.cache(TEN)
    with lend(rig) as source:
        rig.blocks.allocate(rig.blocks.num_free, BlockState.OWNED)
        assert rig.blocks.cache.find(rig.blocks.names("", TEN)) == list(source.block_ids)


def test_it_ends_with_its_reader_whatever_became_of_it() -> None:
    rig = Rig()
    rig.cache(TEN)
    with pytest.raises(BatonError, match="the stream broke"), lend(rig):
        raise BatonError("the stream broke")
    rig.check()
    with lend(rig, fence=Fence(0, 2)) as source:
        rig.book.release(ID, Fence(0, 2), committed=True)
        assert _is_ended(source)
    rig.check()
    with lend(rig, fence=Fence(0, 3)), rig.book.reading(ID, Fence(0, 3), max_segment_bytes=4096):
        pass
    rig.book.release(ID, Fence(0, 3), committed=True)
    rig.check()


def test_a_fetch_that_ended_is_not_served_again() -> None:
    rig = Rig()
    rig.cache(TEN)
    with lend(rig):
        pass
    with pytest.raises(StaleFence), lend(rig):
        pytest.fail("it was lent")
    rig.check()


def test_not_when_memory_is_short() -> None:
    rig = Rig()
    rig.cache(TEN)
    rig.blocks.allocate(13, BlockState.OWNED)
    with pytest.raises(Saturated, match="too few"), lend(rig):
        pytest.fail("it was lent")
    assert rig.book.num_sources == 0


def test_not_while_answers_wait_for_memory() -> None:
    rig = Rig()
    rig.cache(TEN)
    rig.blocks.has_waiting_answers = True
    with pytest.raises(Saturated, match="answers wait"), lend(rig):
        pytest.fail("it was lent")
    rig.check()


def test_so_many_at_once_and_no_more() -> None:
    rig = Rig()
    rig.cache(TEN)
    loans = [lend(rig, f"r/{n}") for n in range(MAX_LOANS)]
    for loan in loans:
        loan.__enter__()
    with pytest.raises(Saturated, match="being read"), lend(rig, "r/last"):
        pytest.fail("it was lent")
    for loan in loans:
        loan.__exit__(None, None, None)
    rig.check()


def _is_ended(source: Source) -> bool:
    return source.state is SourceState.ENDED
