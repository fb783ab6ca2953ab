"""Whoever follows the cache in bounded parts knows in the end what it holds."""

from hypothesis import given
from hypothesis import strategies as st

from core.prefix import HASH_BYTES, BlockHash
from decode_worker.kv_events import Follower
from engine.prefix_cache import PrefixCache

NUM_BLOCKS = 12


def name_of(number: int) -> BlockHash:
    """Told as this number."""
    return BlockHash(number.to_bytes(HASH_BYTES, "little"))


def hear(follower: Follower, known: set[int], max_names: int) -> bool:
    """Take one part; whether there was one."""
    news = follower.take()
    if news is None:
        return False
    assert len(news.stored) + len(news.removed) <= max_names
    if news.is_snapshot:
        known.clear()
    known.difference_update(news.removed)
    known.update(news.stored)
    return True


@given(
    changes=st.lists(st.one_of(st.integers(0, NUM_BLOCKS - 1), st.none()), max_size=40),
    max_names=st.integers(1, 5),
)
def test_laws(changes: list[int | None], max_names: int) -> None:
    """A number: this block is named or forgotten; None: the follower takes a part."""
    cache = PrefixCache()
    cache.insert([name_of(99)], [99])
    follower, known = Follower(cache, max_names), set[int]()
    held = {99}
    for block_id in changes:
        if block_id is None:
            hear(follower, known, max_names)
        elif cache.keeps(block_id):
            cache.forget(block_id)
            held.discard(block_id)
        else:
            cache.insert([name_of(block_id)], [block_id])
            held.add(block_id)
    while hear(follower, known, max_names):
        pass
    assert known == held
