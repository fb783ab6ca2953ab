"""The pair groups that one end keeps between streams."""

from dataclasses import dataclass

from kv_transfer.carriers.contract import CarrierUnusable
from kv_transfer.carriers.pair_group import PairGroup

MAX_GROUPS = 16
"""Of one end of an instance: each is a few threads and descriptors."""
MAX_GROUPS_PER_PEER = 4
"""As many streams between two instances at once; further ones go inline."""


@dataclass(slots=True, eq=False)
class Kept:
    """A group and what goes with it."""

    group: PairGroup
    peer: str
    address: str = ""
    """Where its source awaits the sink."""
    is_busy: bool = True


class PairPool:
    """The groups of one end; owned by the event loop. The one that was idle longest goes first."""

    def __init__(self, max_groups: int = MAX_GROUPS) -> None:
        self._max_groups = max_groups
        self._kept: dict[str, Kept] = {}
        """By group id, in the order in which they were last given back."""

    def take_idle(self, peer: str) -> Kept | None:
        """One of this peer's that is of use; the newest, so that those not needed grow old."""
        for kept in reversed(self._kept.values()):
            if kept.peer == peer and not kept.is_busy and not kept.group.is_dead:
                kept.is_busy = True
                return kept
        return None

    def find(self, group_id: str) -> Kept | None:
        """One that is of use, busy or not."""
        kept = self._kept.get(group_id)
        return None if kept is None or kept.group.is_dead else kept

    def add(self, kept: Kept) -> None:
        """A new one, busy. Raises CarrierUnusable when there are too many."""
        self._make_room(kept.peer)
        self._kept[kept.group.place.group_id] = kept

    def give_back(self, kept: Kept, *, is_clean: bool) -> None:
        """Its stream has ended; `is_clean` when both ends are done with all that was sent."""
        kept.is_busy = False
        group_id = kept.group.place.group_id
        if not is_clean or kept.group.is_dead:
            kept.group.drop()
        elif self._kept.pop(group_id, None) is not None:
            self._kept[group_id] = kept

    def close(self) -> None:
        """End all of them. One with something under way ends a little later, by itself."""
        for kept in self._kept.values():
            if kept.group.is_still:
                kept.group.join()
            else:
                kept.group.drop()
        self._kept.clear()

    @property
    def num_groups(self) -> int:
        """Those whose thread is still there."""
        self._forget()
        return len(self._kept)

    def _make_room(self, peer: str) -> None:
        self._forget()
        num_busy = sum(kept.peer == peer and kept.is_busy for kept in self._kept.values())
        if peer and num_busy >= MAX_GROUPS_PER_PEER:
            raise CarrierUnusable(f"{num_busy} pair groups with this peer are in use")
        if len(self._kept) < self._max_groups:
            return
        idle = next((k for k in self._kept.values() if not (k.is_busy or k.group.is_dead)), None)
        if idle is None:
            raise CarrierUnusable(f"all {len(self._kept)} pair groups are in use or ending")
        # Nothing is under way in it: what its thread still does takes no time worth counting.
        del self._kept[idle.group.place.group_id]
        idle.group.drop()

    def _forget(self) -> None:
        self._kept = {name: kept for name, kept in self._kept.items() if not kept.group.is_gone}
