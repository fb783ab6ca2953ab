"""Names of blocks: chained, keyed, and apart for every tenant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.prefix import HASH_BYTES, PrefixHasher

KEY = bytes(range(32))
TOKENS = st.lists(st.integers(0, 50_000), max_size=40)


def test_only_full_blocks_have_names() -> None:
    hasher = PrefixHasher(KEY, 4)
    assert [len(hasher.extend("", (), range(n))) for n in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]
    assert all(len(name) == HASH_BYTES for name in hasher.extend("", (), range(8)))


@given(tokens=TOKENS, cut=st.integers(0, 10))
def test_a_chain_is_the_same_in_one_go_and_in_two(tokens: list[int], cut: int) -> None:
    hasher = PrefixHasher(KEY, 4)
    whole = hasher.extend("t", (), tokens)
    first = hasher.extend("t", (), tokens[: cut * 4])
    assert [*first, *hasher.extend("t", first, tokens)] == whole


@given(tokens=st.lists(st.integers(0, 50_000), min_size=12, max_size=12), at=st.integers(0, 11))
def test_a_token_changes_its_block_and_all_later_ones(tokens: list[int], at: int) -> None:
    hasher = PrefixHasher(KEY, 4)
    other = [*tokens]
    other[at] += 1
    pairs = zip(hasher.extend("", (), tokens), hasher.extend("", (), other), strict=True)
    assert [a == b for a, b in pairs] == [block < at // 4 for block in range(3)]


def test_tenants_and_keys_share_nothing() -> None:
    names = [
        PrefixHasher(key, 4).extend(tenant, (), range(8))
        for key in (KEY, KEY[::-1])
        for tenant in ("", "a", "b")
    ]
    assert len({name for chain in names for name in chain}) == 12


def test_block_sizes_do_not_collide() -> None:
    assert (
        PrefixHasher(KEY, 4).extend("", (), range(8))[-1]
        != PrefixHasher(KEY, 8).extend("", (), range(8))[-1]
    )


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        PrefixHasher(b"short", 4)
