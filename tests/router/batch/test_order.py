"""What prompts share is computed once: who waits for whom, and whose turn it is."""

from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.batch.order import order
from router.batch.turns import Turns

CASES = [
    # id, prompts, parents
    ("nothing shared", ["a", "b", "c"], {}),
    ("one prefix", ["xx1", "xx2", "xx3"], {1: 0, 2: 0}),
    ("prefix alone", ["xx1", "xx"], {0: 1}),
    ("two levels", ["xxA1", "xxA2", "xxB1", "xxB2"], {1: 0, 2: 0, 3: 2}),
    ("two trees", ["xx1", "yy1", "xx2", "yy2"], {2: 0, 3: 1}),
    ("equal", ["xx", "xx", "xx"], {1: 0, 2: 0}),
    ("too little", ["xa", "xb"], {}),
]


@pytest.mark.parametrize(("prompts", "parents"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_parents(prompts: list[str], parents: dict[int, int]) -> None:
    assert order(prompts, 2).parent == parents


PROMPTS = st.lists(st.text("ab", max_size=8), max_size=12)


def shared(one: str, other: str) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


@given(prompts=PROMPTS, least=st.integers(1, 4))
def test_each_waits_for_whom_it_shares_most_with(prompts: list[str], least: int) -> None:
    found = order(prompts, least)
    assert sorted(found.sequence) == list(range(len(prompts)))
    for place, index in enumerate(found.sequence):
        earlier = found.sequence[:place]
        most = max((shared(prompts[index], prompts[other]) for other in earlier), default=0)
        parent = found.parent.get(index)
        if most < least:
            assert parent is None
            assert found.root[index] == index
        else:
            assert parent in earlier
            assert shared(prompts[index], prompts[parent]) == most
            assert found.root[index] == found.root[parent]


@given(
    prompts=PROMPTS, data=st.data(), max_in_flight=st.integers(1, 5), max_trees=st.integers(1, 3)
)
def test_everybody_gets_one_turn(
    prompts: list[str], data: st.DataObject, max_in_flight: int, max_trees: int
) -> None:
    """Whoever is answered when; parents first; few trees at once."""
    found = order(prompts, 2)
    turns = Turns(found, max_trees)
    running, answered = list[int](), list[int]()
    while len(answered) < len(prompts):
        while len(running) < max_in_flight and (index := turns.next()) is not None:
            assert index not in running + answered
            assert found.parent.get(index) in (None, *answered)
            running.append(index)
        assert running, "nobody runs, and somebody is left"
        has_children = set(found.parent.values())
        begun = {found.root[index] for index in running + answered}
        left = {found.root[i] for i in range(len(prompts)) if i not in answered}
        assert len(begun & left & has_children) <= max_trees
        ended = running.pop(data.draw(st.integers(0, len(running) - 1)))
        answered.append(ended)
        turns.done(ended)
    assert turns.next() is None
