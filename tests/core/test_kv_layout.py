"""Cutting KV for transfer: every (layer, token) exactly once, no piece above its bound."""

from hypothesis import given
from hypothesis import strategies as st

from core.kv_layout import KvLayout, KvRange, cut_tokens, layer_groups


def _layout(num_layers: int = 30) -> KvLayout:
    return KvLayout(
        num_layers=num_layers, num_kv_heads=3, head_dim=64, dtype="float32", block_size=16
    )


def test_sizes_of_smollm2() -> None:
    layout = _layout()
    assert layout.layer_bytes_per_token == 1536
    assert layout.bytes_per_token == 46_080
    assert KvRange(range(5), range(10)).num_bytes(layout) == 5 * 10 * 1536
    assert [layout.num_blocks(n) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_groups_are_alike_and_cover_every_layer_once(sizes: tuple[int, int]) -> None:
    num_layers, num_groups = sizes
    groups = layer_groups(num_layers, num_groups)
    assert [layer for group in groups for layer in group] == list(range(num_layers))
    assert len(groups) == num_groups
    assert 0 <= len(groups[0]) - len(groups[-1]) <= 1


@given(
    start=st.integers(0, 100),
    length=st.integers(1, 2000),
    num_layers=st.integers(1, 30),
    max_bytes=st.integers(1, 1 << 22),
)
def test_cuts_cover_every_token_once_within_the_bound(
    start: int, length: int, num_layers: int, max_bytes: int
) -> None:
    layout, tokens = _layout(), range(start, start + length)
    pieces = list(cut_tokens(tokens, range(num_layers), layout, max_bytes))
    assert [token for piece in pieces for token in piece] == list(tokens)
    for piece in pieces:
        num_bytes = KvRange(range(num_layers), piece).num_bytes(layout)
        assert num_bytes <= max_bytes or len(piece) == 1
