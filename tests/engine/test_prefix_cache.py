"""Names of blocks, how long they last, and what followers are told."""

from hypothesis import given
from hypothesis import strategies as st

from core.blocks import BlockState
from core.prefix import BlockHash
from engine.block_allocator import BlockAllocator
from engine.prefix_cache import MAX_JOURNAL, PrefixCache

OWNED, CACHED = BlockState.OWNED, BlockState.CACHED


def names(*numbers: int) -> list[BlockHash]:
    return [BlockHash(n.to_bytes(8, "little") + bytes(8)) for n in numbers]


def test_the_longest_known_beginning_is_found() -> None:
    cache = PrefixCache()
    cache.insert(names(1, 2, 4), [7, 8, 9])
    assert cache.find(names(1, 2, 3, 4)) == [7, 8]
    assert cache.find(names(2)) == [8]
    assert cache.find(names(3, 1)) == []


def test_what_is_known_keeps_its_first_block() -> None:
    cache = PrefixCache()
    cache.insert(names(1), [7])
    cache.insert(names(1, 2), [5, 6])
    assert cache.find(names(1, 2)) == [7, 6]
    assert not cache.keeps(5)


def test_the_longest_unused_end_is_evicted_first() -> None:
    cache = PrefixCache()
    allocator = BlockAllocator(4, 16, cache)
    old = allocator.allocate(2, OWNED)
    cache.insert(names(1, 2), old)
    allocator.release(old, OWNED)
    new = allocator.allocate(2, OWNED)
    assert set(new).isdisjoint(old), "free blocks go before cached ones"
    cache.insert(names(3), new)
    allocator.release(new, OWNED)
    assert allocator.counts()[CACHED] == 3
    allocator.allocate(2, OWNED)
    assert cache.find(names(1, 2)) == [old[0]], "the end of the older prefix went"
    allocator.allocate(1, OWNED)
    assert (cache.find(names(1)), cache.find(names(3))) == ([], [new[0]])


def test_a_hit_makes_a_prefix_young_again() -> None:
    cache = PrefixCache()
    allocator = BlockAllocator(2, 16, cache)
    for number in (1, 2):
        block_ids = allocator.allocate(1, OWNED)
        cache.insert(names(number), block_ids)
        allocator.release(block_ids, OWNED)
    hit = cache.find(names(1))
    allocator.share(hit)
    allocator.release(hit, OWNED)
    allocator.allocate(1, OWNED)
    assert cache.find(names(1)) == hit
    assert cache.find(names(2)) == []


def test_news_is_what_changed_since() -> None:
    cache = PrefixCache()
    cache.insert(names(1, 2), [7, 8])
    seen = cache.num_changes
    assert not cache.news(seen)
    cache.insert(names(3), [9])
    cache.forget(7)
    news = cache.news(seen)
    assert (news.is_snapshot, news.stored, news.removed) == (False, (3,), (1,))
    whole = cache.news(None)
    assert (whole.is_snapshot, sorted(whole.stored), whole.removed) == (True, [2, 3], ())


def test_who_is_too_far_behind_gets_a_snapshot() -> None:
    cache = PrefixCache()
    for number in range(MAX_JOURNAL + 1):
        cache.insert(names(number + 1), [number])
    assert cache.news(0).is_snapshot
    assert not cache.news(1).is_snapshot


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=40))
def test_a_follower_knows_what_there_is(changes: list[tuple[int, bool]]) -> None:
    cache = PrefixCache()
    known: set[int] = set()
    seen: int | None = None
    for number, is_told in changes:
        if cache.keeps(number):
            cache.forget(number)
        else:
            cache.insert(names(number), [number])
        if is_told:
            news = cache.news(seen)
            known = (set() if news.is_snapshot else known - set(news.removed)) | set(news.stored)
            seen = cache.num_changes
            assert known == {n for n in range(1, 7) if cache.keeps(n)}
