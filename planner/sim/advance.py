"""What happens without anybody's decision; one function deep in what it calls, and no deeper:
machine code is made anew for all that a function calls, at each level."""

from planner.sim.changes import ask_again, change
from planner.sim.end import end_pipeline, end_step
from planner.sim.heap import cancel
from planner.sim.mixed_pool import settle_pool
from planner.sim.splitwise import start_selected
from planner.sim.start import SPLITWISE, settle, start
from planner.sim.state import (
    NEXT_CHANGE,
    NEXT_REQUEST,
    NOW,
    NUM_EVENTS,
    NUM_MISSES,
    Sim,
    ask_for,
)
from planner.sim.transfer import end_transfer, retry

NO_MOMENT = 2**62


def advance(sim: Sim) -> bool:
    """Go on until somebody is to be placed; False once all is over."""
    while sim.counters[NUM_MISSES] <= sim.limits.max_misses:
        at_ps = _next_moment(sim)
        if at_ps == NO_MOMENT:
            return False
        sim.counters[NOW] = at_ps
        _end_all(sim, at_ps)
        _change_all(sim, at_ps)
        if sim.ready[-1]:
            return True
        go_on(sim, at_ps)
    return False


def go_on(sim: Sim, at_ps: int) -> None:
    """Once all are placed."""
    _let_in(sim, at_ps)
    while True:
        for n in range(sim.dirty[-1]):
            settle(sim, sim.dirty[n], at_ps)
        if sim.retry[-1] == 0:
            break
        _let_in(sim, at_ps)
    due = sim.due
    if due.num[0] and due.at_ps[due.slots[0]] == at_ps:
        return  # a leap that was cut short ends now
    while sim.dirty[-1]:
        sim.dirty[-1] -= 1
        lane = sim.dirty[sim.dirty[-1]]
        sim.lanes[lane].dirty = 0
        if sim.kinds.rules[sim.lanes[lane].kind].scheduling == SPLITWISE:
            start_selected(sim, lane, at_ps)
        else:
            start(sim, lane, at_ps)
        if sim.rules.in_pools:
            settle_pool(sim, lane)


def _let_in(sim: Sim, at_ps: int) -> None:
    """Those that wait for room where some has become free."""
    while sim.retry[-1]:
        sim.retry[-1] -= 1
        lane = sim.retry[sim.retry[-1]]
        sim.lanes[lane].retry = 0
        retry(sim, lane, at_ps)


def _next_moment(sim: Sim) -> int:
    due, counters = sim.due, sim.counters
    r, c = counters[NEXT_REQUEST], counters[NEXT_CHANGE]
    at_ps = NO_MOMENT
    if due.num[0]:
        at_ps = due.at_ps[due.slots[0]]
    if r < len(sim.requests):
        at_ps = min(at_ps, sim.requests[r].arrival)
    if c < len(sim.changes):
        at_ps = min(at_ps, sim.changes[c, 0])
    return at_ps


def _end_all(sim: Sim, at_ps: int) -> None:
    due, num_lanes = sim.due, len(sim.lanes)
    while due.num[0] and due.at_ps[due.slots[0]] == at_ps:
        slot = due.slots[0]
        cancel(due, slot)
        sim.counters[NUM_EVENTS] += 1
        if slot < num_lanes:
            end_step(sim, slot, at_ps)
        elif slot < 2 * num_lanes:
            end_pipeline(sim, slot - num_lanes, at_ps)
        else:
            end_transfer(sim, slot - 2 * num_lanes, at_ps)


def _change_all(sim: Sim, at_ps: int) -> None:
    counters = sim.counters
    any_lost = False
    while counters[NEXT_CHANGE] < len(sim.changes):
        if sim.changes[counters[NEXT_CHANGE], 0] > at_ps:
            break
        any_lost |= change(sim, counters[NEXT_CHANGE], at_ps)
        counters[NEXT_CHANGE] += 1
    if any_lost:
        ask_again(sim)
    while counters[NEXT_REQUEST] < len(sim.requests):
        if sim.requests[counters[NEXT_REQUEST]].arrival > at_ps:
            break
        ask_for(sim, counters[NEXT_REQUEST])
        counters[NEXT_REQUEST] += 1
