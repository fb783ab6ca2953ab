"""What a timeline says of stages that overlap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ranks.spans import Span, duration_s, overlap_s, render

APART = (Span(0, 0, 0, 0.0, 1.0), Span(1, 1, 0, 1.0, 2.0))
PIPED = (
    *(Span(0, 0, 0, 0.0, 1.0), Span(0, 0, 1, 1.0, 2.0)),
    *(Span(1, 1, 0, 1.0, 2.0), Span(1, 1, 1, 2.0, 3.0)),
)
SPLIT = (Span(0, 0, 0, 0.0, 1.0), Span(1, 0, 0, 0.0, 1.0))

CASES = [
    # id                        timeline overlap_s duration_s
    ("nothing", (), 0.0, 0.0),
    ("one after the other", APART, 0.0, 2.0),
    ("a pipeline", PIPED, 1.0, 3.0),
    ("ranks of one stage", SPLIT, 0.0, 1.0),
]


@pytest.mark.parametrize(
    ("timeline", "overlap", "duration"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_overlap(timeline: tuple[Span, ...], overlap: float, duration: float) -> None:
    assert overlap_s(timeline) == pytest.approx(overlap)
    assert duration_s(timeline) == pytest.approx(duration)


def test_render() -> None:
    assert render(PIPED, width=6).splitlines() == [
        "stage 0 rank 0 |0011..|",
        "stage 1 rank 1 |..0011|",
        "3000.0 milliseconds, 1000.0 overlapped",
    ]
    assert render(()) == "nothing was computed"


@given(
    st.lists(
        st.builds(
            lambda rank, number, began_s, lasts_s: Span(
                rank, rank // 2, number, began_s, began_s + lasts_s
            ),
            *(st.integers(0, 3), st.integers(0, 50), st.floats(0, 10), st.floats(0, 5)),
        ),
        max_size=8,
    )
)
def test_any_timeline_has_a_picture(timeline: list[Span]) -> None:
    assert 0 <= overlap_s(timeline) <= duration_s(timeline) + 1e-9
    lines = render(timeline, width=20).splitlines()
    assert len({len(line) for line in lines[:-1]}) <= 1
