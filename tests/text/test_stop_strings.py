"""Stop strings: the streaming matcher equals a search of the whole text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from text.stop_strings import StopMatcher, StopResult


def naive(text: str, stop_strings: list[str]) -> tuple[str, str | None]:
    """Read character by character; what is complete first wins, then what is longest."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stop_strings if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


def run(pieces: list[str], stop_strings: list[str]) -> tuple[list[StopResult], StopResult]:
    matcher = StopMatcher(stop_strings)
    return [matcher.push(piece) for piece in pieces], matcher.push("", final=True)


STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


@given(pieces=st.lists(st.text("abc", max_size=4)), stop_strings=STOPS)
def test_any_split_gives_what_a_search_of_the_whole_gives(
    pieces: list[str], stop_strings: list[str]
) -> None:
    results, last = run(pieces, stop_strings)
    matched = [result.matched for result in results if result.matched is not None]
    emitted = "".join(result.emit for result in [*results, last])
    assert (emitted, next(iter(matched), None)) == naive("".join(pieces), stop_strings)
    assert len(matched) <= 1
    assert last.matched is None


@given(pieces=st.lists(st.text("abc", max_size=4)), stop_strings=STOPS)
def test_the_match_is_reported_by_the_push_that_completes_it(
    pieces: list[str], stop_strings: list[str]
) -> None:
    results, _ = run(pieces, stop_strings)
    for end, result in enumerate(results, start=1):
        _, earlier = naive("".join(pieces[: end - 1]), stop_strings)
        _, by_now = naive("".join(pieces[:end]), stop_strings)
        assert (result.matched is not None) == (by_now is not None and earlier is None)


CASES = [
    # id, stop strings, pieces, emitted per piece, emitted at the end, matched
    ("nothing to stop at", [], ["ab", "c"], ["ab", "c"], "", None),
    ("within one piece", ["STOP"], ["a STOP b"], ["a "], "", "STOP"),
    ("over three pieces", ["STOP"], ["a S", "TO", "P b"], ["a ", "", ""], "", "STOP"),
    ("a false beginning", ["STOP"], ["a S", "T ", "b"], ["a ", "ST ", "b"], "", None),
    ("held at the end", ["STOP"], ["a ST"], ["a "], "ST", None),
    ("a beginning within a beginning", ["aab"], ["aa", "a", "b"], ["", "a", ""], "", "aab"),
    ("complete first", ["abc", "b"], ["abc"], ["a"], "", "b"),
    ("complete together: longest", ["b", "ab"], ["xab"], ["x"], "", "ab"),
    ("nothing after a match", ["."], ["a.", "b."], ["a", ""], "", "."),
    ("beyond ASCII", ["終わり"], ["はい終", "わり"], ["はい", ""], "", "終わり"),
]


@pytest.mark.parametrize(
    ("stop_strings", "pieces", "emits", "rest", "matched"),
    [c[1:] for c in CASES],
    ids=[c[0] for c in CASES],
)
def test_cases(
    stop_strings: list[str], pieces: list[str], emits: list[str], rest: str, matched: str | None
) -> None:
    results, last = run(pieces, stop_strings)
    assert [result.emit for result in results] == emits
    assert last == StopResult(rest, None)
    assert next((r.matched for r in results if r.matched is not None), None) == matched


def test_the_last_push_may_match_too() -> None:
    matcher = StopMatcher(["end"])
    assert matcher.push("the en") == StopResult("the ", None)
    assert matcher.push("d.", final=True) == StopResult("", "end")
