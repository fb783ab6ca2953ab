"""A member that left goes at once; a store that forgot or was away costs nobody a place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.view import REJOIN_GRACE_S, MembershipView, Snapshot, read_records
from tests.registry.support import ids, make_member

BLIND = None
A, B, AB, NONE = "a", "b", "ab", ""

CASES = [
    # id, then (at_s, memory, ids read or BLIND, ids shown) ...
    ("joins and leaves show at once", [(0, "m", A, A), (1, "m", AB, AB), (2, "m", B, B)]),
    ("an empty store at first", [(0, "", NONE, NONE), (1, "m", A, A), (9, "m", A, A)]),
    (
        "flushed, all come back",
        [(0, "m", AB, AB), (1, "", NONE, AB), (2, "n", A, AB), (3, "n", AB, AB), (9, "n", AB, AB)],
    ),
    (
        "flushed, one never comes back",
        [(0, "m", AB, AB), (1, "n", A, AB), (5.9, "n", A, AB), (6, "n", A, A)],
    ),
    (
        "an old record read after an outage does not end the grace",
        [(0, "m", AB, AB), (1, "", BLIND, AB), (2, "m", A, AB), (3, "m", NONE, AB), (7, "m", B, B)],
    ),
    ("a short outage is an outage", [(0, "m", A, A), (0.1, "", BLIND, A), (0.2, "m", NONE, A)]),
    (
        "after the grace, leaving shows at once again",
        [(0, "m", A, A), (1, "n", A, A), (7, "n", A, A), (8, "n", NONE, NONE)],
    ),
]


@pytest.mark.parametrize("steps", [c[1] for c in CASES], ids=[c[0] for c in CASES])
def test_view(steps: list[tuple[float, str, str | None, str]]) -> None:
    view = MembershipView()
    shown = ""
    for at_s, memory, read, want in steps:
        if read is BLIND:
            view.lost_sight()
        else:
            shown = "".join(ids(view.observe(_snapshot(memory, read), at_s)))
        assert shown == want, f"at {at_s} s"


def test_a_new_incarnation_replaces_the_held_one() -> None:
    view = MembershipView()
    old, new = make_member("a", incarnation="old"), make_member("a", incarnation="new")
    view.observe(Snapshot(members=(old,), memory="m"), 0)
    assert view.observe(Snapshot(members=(new,), memory="n"), 1) == (new,)


readings = st.tuples(
    st.floats(0, 20), st.sampled_from(["", "m", "n"]), st.sets(st.sampled_from("abc"))
)


@given(st.lists(st.one_of(st.none(), readings), max_size=30), st.sets(st.sampled_from("abc")))
def test_who_is_read_is_shown_and_in_quiet_times_nobody_else(
    history: list[tuple[float, str, set[str]] | None], last: set[str]
) -> None:
    view, now_s = MembershipView(), 0.0
    for reading in history:
        if reading is None:
            view.lost_sight()
            continue
        after_s, memory, read = reading
        now_s += after_s
        assert read <= set(ids(view.observe(_snapshot(memory, "".join(read)), now_s)))
    view.observe(_snapshot("m", ""), now_s)
    shown = view.observe(_snapshot("m", "".join(last)), now_s + REJOIN_GRACE_S)
    assert ids(shown) == sorted(last)


def test_damaged_records_hide_nobody_else() -> None:
    good = make_member("good")
    records = read_records(
        [("bad", "{"), ("good", good.to_json()), ("thief", good.to_json()), ("\x00", "")]
    )
    assert records.members == (good,)
    assert sorted(records.problems) == ["\x00", "bad", "thief"]
    assert records.problems["thief"] == "names another instance"


def _snapshot(memory: str, read: str) -> Snapshot:
    return Snapshot(members=tuple(make_member(i) for i in sorted(read)), memory=memory)
