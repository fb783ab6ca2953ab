"""What a router knows of caches: as told, bounded, and asked only as far as it answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.prefix import BlockHash, PrefixHasher
from router.prefix_index import MAX_NAMED_TOKENS, PrefixIndex, PromptNames, num_tokens_to_fetch

KEY = bytes(range(32))
PROMPT = tuple(range(40))


def short_names(block_size: int, num_tokens: int, tenant: str = "") -> list[int]:
    chain: list[BlockHash] = PrefixHasher(KEY, block_size).extend(tenant, [], PROMPT[:num_tokens])
    return [int.from_bytes(name[:8], "little") for name in chain]


def index(*rows: tuple[int, int], max_names: int = 1000) -> PrefixIndex:
    """A row per (block size, leading tokens cached)."""
    made = PrefixIndex(max_names)
    for row, (block_size, num_tokens) in enumerate(rows):
        made.join(row, num_blocks=64, block_size=block_size)
        made.take(row, is_snapshot=True, stored=short_names(block_size, num_tokens), removed=())
    return made


def hits(made: PrefixIndex, num_rows: int, tenant: str = "") -> list[int]:
    found: list[int] = made.hit_tokens(PromptNames(KEY).of(tenant, PROMPT), num_rows).tolist()
    return found


CASES = [
    # id                                        rows (block size, tokens)        want
    ("nothing anywhere", ((4, 0), (4, 0)), [0, 0]),
    ("all of one, nothing of the other", ((4, 40), (4, 0)), [40, 0]),
    ("each as far as it goes", ((4, 40), (4, 12), (4, 12), (4, 4)), [40, 12, 12, 4]),
    ("blocks of other sizes", ((4, 12), (8, 16), (16, 40)), [12, 16, 32]),
]


@pytest.mark.parametrize(("rows", "want"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_hits(rows: tuple[tuple[int, int], ...], want: list[int]) -> None:
    assert hits(index(*rows), len(rows)) == want


def test_rows_past_the_first_eight() -> None:
    made = index(*((4, 4 * (i % 5)) for i in range(20)))
    assert hits(made, 20) == [4 * (i % 5) for i in range(20)]


def test_what_another_tenant_caches_is_no_hit() -> None:
    assert hits(index((4, 40)), 1, tenant="other") == [0]


def test_a_hole_ends_the_beginning() -> None:
    made = index((4, 40), (4, 40))
    made.take(0, is_snapshot=False, stored=(), removed=short_names(4, 40)[3:4])
    assert hits(made, 2) == [12, 40]


def test_a_snapshot_takes_the_place_of_all() -> None:
    made = index((4, 40))
    made.take(0, is_snapshot=True, stored=short_names(4, 8), removed=())
    assert hits(made, 1) == [8]


def test_who_left_is_forgotten_and_its_row_begins_anew() -> None:
    made = index((4, 40), (4, 8))
    made.leave(0)
    assert len(made) == 2
    made.join(0, num_blocks=64, block_size=8)
    assert hits(made, 2) == [0, 8]


def test_bounds() -> None:
    made = PrefixIndex(max_names=10)
    made.join(0, num_blocks=4, block_size=4)
    made.join(1, num_blocks=4, block_size=4)
    made.take(0, is_snapshot=False, stored=range(100), removed=())
    assert len(made) == 8  # twice its blocks
    made.take(1, is_snapshot=False, stored=range(100), removed=())
    assert len(made) == 10  # of all together
    made.take(0, is_snapshot=False, stored=(), removed=range(100))
    made.take(1, is_snapshot=False, stored=(), removed=range(100))
    assert len(made) == 0


FETCHES = [
    ("all there, nothing here", 40, 0, 4, 40),
    ("a block more there", 12, 8, 4, 12),
    ("less than a block of ours more", 12, 8, 8, 0),
    ("as much here", 12, 12, 4, 0),
    ("more here", 8, 40, 4, 0),
]


@pytest.mark.parametrize(
    ("there", "here", "size", "want"), [c[1:] for c in FETCHES], ids=[c[0] for c in FETCHES]
)
def test_fetch_what_is_at_least_a_block_more(there: int, here: int, size: int, want: int) -> None:
    assert num_tokens_to_fetch(there, here, size) == want


def test_no_more_of_a_prompt_is_named_than_the_bound() -> None:
    names = PromptNames(KEY).of("", tuple(range(MAX_NAMED_TOKENS + 100))).names(16)
    assert sum(1 for _ in names) == MAX_NAMED_TOKENS // 16


NEWS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.booleans(),
        st.sets(st.integers(0, 9)),
        st.sets(st.integers(0, 9)),
    )
)


@given(NEWS)
def test_as_if_each_instance_had_a_set_of_its_own(
    news: list[tuple[int, bool, set[int], set[int]]],
) -> None:
    made, names = PrefixIndex(), short_names(4, 40)
    told: list[set[int]] = [set(), set(), set()]
    for row in range(3):
        made.join(row, num_blocks=64, block_size=4)
    for row, is_snapshot, stored, removed in news:
        made.take(
            row,
            is_snapshot=is_snapshot,
            stored=[names[i] for i in stored],
            removed=[names[i] for i in removed],
        )
        told[row] = (set() if is_snapshot else told[row]) - removed | stored
    leading = [next((i for i in range(11) if i not in has), 10) for has in told]
    assert hits(made, 3) == [4 * n for n in leading]
    assert len(made) == sum(map(len, told))
