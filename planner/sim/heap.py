"""Two heaps as arrays: what happens next, and which answer of a batch ends first."""

from typing import NamedTuple

import numpy as np

from policy.table import Ints

NONE = -1


class Events(NamedTuple):
    """At most one moment per slot; the earliest comes first, of equals the lowest slot."""

    at_ps: Ints
    """By slot."""
    slots: Ints
    """By place in the heap."""
    places: Ints
    """By slot; NONE: nothing is due."""
    num: Ints
    """[of places in use]."""


def events(num_slots: int) -> Events:
    """Nothing is due."""
    return Events(
        at_ps=np.zeros(num_slots, dtype=np.int64),
        slots=np.zeros(num_slots, dtype=np.int64),
        places=np.full(num_slots, NONE, dtype=np.int64),
        num=np.zeros(1, dtype=np.int64),
    )


def schedule(due: Events, slot: int, at_ps: int) -> None:
    """The slot's moment, whether or not it had one."""
    due.at_ps[slot] = at_ps
    place = due.places[slot]
    if place == NONE:
        place = due.num[0]
        due.num[0] = place + 1
        due.slots[place] = slot
        due.places[slot] = place
    _settle(due, place)


def cancel(due: Events, slot: int) -> None:
    """Nothing is due in the slot any more."""
    place = due.places[slot]
    if place == NONE:
        return
    due.places[slot] = NONE
    last = due.num[0] - 1
    due.num[0] = last
    if place != last:
        moved = due.slots[last]
        due.slots[place] = moved
        due.places[moved] = place
        _settle(due, place)


def _before(due: Events, one: int, other: int) -> bool:
    if due.at_ps[one] != due.at_ps[other]:
        return bool(due.at_ps[one] < due.at_ps[other])
    return one < other


def _settle(due: Events, place: int) -> None:
    """Up or down, until the order holds."""
    slot = due.slots[place]
    while place > 0:
        above = (place - 1) // 2
        if not _before(due, slot, due.slots[above]):
            break
        due.slots[place] = due.slots[above]
        due.places[due.slots[place]] = place
        place = above
    while True:
        below = 2 * place + 1
        if below >= due.num[0]:
            break
        if below + 1 < due.num[0] and _before(due, due.slots[below + 1], due.slots[below]):
            below += 1
        if not _before(due, due.slots[below], slot):
            break
        due.slots[place] = due.slots[below]
        due.places[due.slots[place]] = place
        place = below
    due.slots[place] = slot
    due.places[slot] = place


def push_key(keys: Ints, num: int, key: int) -> None:
    """Into a heap of `num` keys, the least first."""
    place = num
    while place > 0:
        above = (place - 1) // 2
        if keys[above] <= key:
            break
        keys[place] = keys[above]
        place = above
    keys[place] = key


def drop_key(keys: Ints, num: int, place: int) -> None:
    """Out of a heap of `num` keys; the first has place 0."""
    last = keys[num - 1]
    num -= 1
    while place > 0 and keys[(place - 1) // 2] > last:
        keys[place] = keys[(place - 1) // 2]
        place = (place - 1) // 2
    while True:
        below = 2 * place + 1
        if below >= num:
            break
        if below + 1 < num and keys[below + 1] < keys[below]:
            below += 1
        if keys[below] >= last:
            break
        keys[place] = keys[below]
        place = below
    keys[place] = last
