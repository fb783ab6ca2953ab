"""The pair groups that one end keeps between streams, and the memory that payloads move through."""

import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from core.limits import MAX_KV_FRAME_BYTES
from kv_transfer.carriers.contract import CarrierUnusable
from kv_transfer.carriers.pair_group import PairGroup

MAX_GROUPS = 16
"""Of one end of an instance: each is a few threads and descriptors."""
MAX_GROUPS_PER_PEER = 4
"""As many streams between two instances at once; further ones go inline."""
NUM_KEPT_BUFFERS = 4
"""Touched once, reused after: to fault in new pages costs as much as to move their bytes."""

_Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Staging:
    """Buffers of the largest payload's size; one that nobody looks at any more is lent again.

    A buffer comes back in whichever thread drops it last, which a deque allows.
    """

    def __init__(self) -> None:
        self._free: deque[_Bytes] = deque(maxlen=NUM_KEPT_BUFFERS)

    def take(self) -> _Bytes:
        """A whole buffer, with whatever was in it. Its owner passes it on to `lend`."""
        try:
            return self._free.popleft()
        except IndexError:
            # All of it costs nothing until it is written.
            return np.empty(MAX_KV_FRAME_BYTES, dtype=np.uint8)

    def lend(self, whole: _Bytes, num_bytes: int) -> memoryview:
        """Its first bytes; `whole` is free again when these and all made of them are dropped."""
        part = whole[:num_bytes]
        weakref.finalize(part, self._free.append, whole).atexit = False
        return part.data


@dataclass(slots=True, eq=False)
class Kept:
    """A group and what goes with it."""

    group: PairGroup
    peer: str
    address: str = ""
    """Where its source awaits the sink."""
    num_streams: int = 0
    """That used it, the present one included; the number tells their payloads apart."""
    is_busy: bool = True
    staging: Staging = field(default_factory=Staging)


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
