"""The newest controller that was heard is obeyed, and people always."""

import random

import pytest

from core.errors import StaleTerm
from core.term import Terms

CASES = [
    # id                            heard before  asks  obeyed
    ("the first", (), 1, True),
    ("the same again", (3,), 3, True),
    ("a newer one", (3,), 4, True),
    ("an older one", (3,), 2, False),
    ("an older one, after a person", (3, 0), 2, False),
    ("a person, before anybody", (), 0, True),
    ("a person, after a controller", (3,), 0, True),
    ("the largest of the wire", (3,), 2**64 - 1, True),
]


@pytest.mark.parametrize(
    ("heard", "term", "obeyed"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_who_is_obeyed(heard: tuple[int, ...], term: int, obeyed: bool) -> None:
    terms = Terms()
    for earlier in heard:
        terms.hear(earlier)
    if obeyed:
        terms.hear(term)
        assert terms.highest == max((*heard, term))
        return
    with pytest.raises(StaleTerm, match="term 2 is behind 3"):
        terms.hear(term)
    assert terms.highest == 3


@pytest.mark.parametrize("seed", range(20))
def test_those_obeyed_never_go_back(seed: int) -> None:
    draw, terms, obeyed = random.Random(seed), Terms(), list[int]()
    for _ in range(200):
        term = draw.randrange(10)
        try:
            terms.hear(term)
        except StaleTerm:
            assert 0 < term < max(obeyed)
        else:
            obeyed.append(term)
    controllers = [term for term in obeyed if term]
    assert controllers == sorted(controllers)
    assert 0 in obeyed
