"""Where in each router's list of ended requests the next question goes on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """In one router's list."""

    incarnation: str
    next: int
    asked_at_s: float


class Places:
    """Of all routers that were asked."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}

    def after(self, router_id: str) -> int:
        """What to ask for; 0 for a router that is new."""
        place = self._places.get(router_id)
        return 0 if place is None else place.next

    def heard(self, router_id: str, place: Place) -> Place | None:
        """The place of the answer before, which the new one goes on from.

        None: there was none, or the list began anew. Then nobody missed what it does not hold;
        and where `after` was above 0, it has to be asked again, from 0, and this answer dropped.
        """
        before = self._places.get(router_id)
        if before is not None and before.incarnation != place.incarnation:
            del self._places[router_id]
            return None
        self._places[router_id] = place
        return before

    def keep(self, router_ids: frozenset[str]) -> None:
        """Forget those that are gone."""
        self._places = {k: place for k, place in self._places.items() if k in router_ids}
