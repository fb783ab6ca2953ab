"""What a router knows of caches: as told, bounded, and asked only as far as it answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.prefix import BlockHash, PrefixHasher
from router.kv_index import MAX_NAMED_TOKENS, Cache, KvIndex, PromptNames

KEY = bytes(range(32))
PROMPT = tuple(range(40))
CASES = [
    # id                                  size there here  num_there num_here  want
    ("nothing anywhere", 4, 4, 0, 0, 0),
    ("all there, nothing here", 4, 4, 40, 0, 40),
    ("a block more there", 4, 4, 12, 8, 12),
    ("as much here", 4, 4, 12, 12, 0),
    ("more here", 4, 4, 8, 40, 0),
    ("other sizes: a block more", 8, 4, 16, 12, 16),
    ("other sizes: less than a block of ours more", 4, 8, 12, 8, 0),
    ("a last block that is not full has no name", 16, 16, 40, 0, 32),
]


def short_names(block_size: int, num_tokens: int, tenant: str = "") -> list[int]:
    chain: list[BlockHash] = PrefixHasher(KEY, block_size).extend(tenant, [], PROMPT[:num_tokens])
    return [int.from_bytes(name[:8], "little") for name in chain]


def cache(block_size: int, num_tokens: int, tenant: str = "") -> Cache:
    """That holds so many of the prompt's first tokens."""
    index = KvIndex(64)
    index.take(is_snapshot=True, stored=short_names(block_size, num_tokens, tenant), removed=())
    return Cache(index, block_size)


@pytest.mark.parametrize(
    ("size_there", "size_here", "num_there", "num_here", "want"),
    [c[1:] for c in CASES],
    ids=[c[0] for c in CASES],
)
def test_fetch_what_is_at_least_a_block_more(
    size_there: int, size_here: int, num_there: int, num_here: int, want: int
) -> None:
    there, here = cache(size_there, num_there), cache(size_here, num_here)
    assert PromptNames(KEY).num_tokens_to_fetch(there, here, "", PROMPT) == want


def test_what_another_tenant_caches_is_no_hit() -> None:
    there, nothing = cache(4, 40, tenant="other"), cache(4, 0)
    assert PromptNames(KEY).num_tokens_to_fetch(there, nothing, "", PROMPT) == 0
    assert PromptNames(KEY).num_tokens_to_fetch(there, nothing, "other", PROMPT) == 40


def test_a_hole_ends_the_beginning() -> None:
    names = short_names(4, 40)
    index = KvIndex(64)
    index.take(is_snapshot=True, stored=names, removed=())
    index.take(is_snapshot=False, stored=(), removed=names[3:4])
    there = Cache(index, 4)
    assert PromptNames(KEY).num_tokens_to_fetch(there, cache(4, 0), "", PROMPT) == 12


class Asked(KvIndex):
    """Counts what it is asked."""

    num_asked = 0

    def __contains__(self, name: int) -> bool:
        self.num_asked += 1
        return super().__contains__(name)


def test_a_long_prompt_that_nobody_caches_costs_one_name() -> None:
    index = Asked(64)
    names, there = PromptNames(KEY), Cache(index, 16)
    assert names.num_tokens_to_fetch(there, there, "", tuple(range(100_000))) == 0
    assert index.num_asked == 1


def test_a_long_prompt_is_named_up_to_the_bound() -> None:
    ids = tuple(range(2 * MAX_NAMED_TOKENS))
    chain = PrefixHasher(KEY, 16).extend("", [], ids)
    index = KvIndex(len(chain))
    index.take(
        is_snapshot=True, stored=(int.from_bytes(n[:8], "little") for n in chain), removed=()
    )
    there, nothing = Cache(index, 16), Cache(KvIndex(1), 16)
    got = PromptNames(KEY).num_tokens_to_fetch(there, nothing, "", ids)
    assert got == MAX_NAMED_TOKENS


NEWS = st.tuples(st.booleans(), st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)))


@given(st.lists(NEWS))
def test_it_is_what_was_told(told: list[tuple[bool, set[int], set[int]]]) -> None:
    index, want = KvIndex(10), set[int]()
    for is_snapshot, stored, removed in told:
        removed = removed - stored
        index.take(is_snapshot=is_snapshot, stored=stored, removed=removed)
        want = stored if is_snapshot else (want - removed) | stored
        assert {name for name in range(10) if name in index} == want
    index.clear()
    assert len(index) == 0


@given(st.lists(NEWS))
def test_it_never_grows_past_its_bound(told: list[tuple[bool, set[int], set[int]]]) -> None:
    index = KvIndex(2)
    for is_snapshot, stored, removed in told:
        index.take(is_snapshot=is_snapshot, stored=stored, removed=removed)
        assert len(index) <= 4
