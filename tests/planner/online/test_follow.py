"""Where the next question goes on: each list from where it was, a new one from its start."""

from planner.online.follow import Place, Places


def place(incarnation: str, after: int, at_s: float = 1.0) -> Place:
    return Place(incarnation=incarnation, next=after, asked_at_s=at_s)


def test_a_list_is_followed() -> None:
    places = Places()
    assert places.after("r0") == 0
    assert places.heard("r0", place("a", 7, 1.0)) is None
    assert places.after("r0") == 7
    before = places.heard("r0", place("a", 9, 2.0))
    assert before is not None
    assert before.asked_at_s == 1.0
    assert (places.after("r0"), places.after("r1")) == (9, 0)


def test_a_list_that_began_anew_is_asked_for_from_its_start() -> None:
    places = Places()
    places.heard("r0", place("a", 7))
    assert places.heard("r0", place("b", 12)) is None
    assert places.after("r0") == 0
    assert places.heard("r0", place("b", 12)) is None
    assert places.after("r0") == 12


def test_routers_that_are_gone_are_forgotten() -> None:
    places = Places()
    places.heard("r0", place("a", 7))
    places.heard("r1", place("b", 8))
    places.keep(frozenset({"r1"}))
    assert (places.after("r0"), places.after("r1")) == (0, 8)
