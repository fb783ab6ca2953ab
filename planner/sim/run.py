"""The loop: from moment to moment, and within a moment always in the same order.

1. Steps end, by lane; transfers end, by request.
2. Requests whose prompt is read are handed off.
3. Instances change, requests arrive and are placed.
4. Those that wait for room get it, first come first served.
5. Lanes that have nothing to do begin their next step, by lane.
"""

from planner.sim.changes import change, place
from planner.sim.end import end_pipeline, end_step
from planner.sim.heap import cancel
from planner.sim.mixed_pool import settle_pools
from planner.sim.place import choose_decode
from planner.sim.start import start
from planner.sim.state import NOW, NUM_EVENTS, NUM_MISSES, Sim
from planner.sim.transfer import end_transfer, give_up, hand_off, retry

NO_MOMENT = 2**62


def run(sim: Sim) -> None:
    """Until all requests have ended, or too many have missed their limits."""
    r, c = 0, 0
    num_requests, num_changes = len(sim.requests), len(sim.changes)
    while sim.counters[NUM_MISSES] <= sim.limits.max_misses:
        at_ps = NO_MOMENT
        if sim.due.num[0]:
            at_ps = sim.due.at_ps[sim.due.slots[0]]
        if r < num_requests:
            at_ps = min(at_ps, sim.requests[r].arrival)
        if c < num_changes:
            at_ps = min(at_ps, sim.changes[c, 0])
        if at_ps == NO_MOMENT:
            return
        sim.counters[NOW] = at_ps
        _end_all(sim, at_ps)
        _hand_off_all(sim, at_ps)
        while c < num_changes and sim.changes[c, 0] == at_ps:
            change(sim, c, at_ps)
            c += 1
        while r < num_requests and sim.requests[r].arrival == at_ps:
            place(sim, r, at_ps)
            r += 1
        while sim.retry[-1]:
            sim.retry[-1] -= 1
            lane = sim.retry[sim.retry[-1]]
            sim.lanes[lane].retry = 0
            retry(sim, lane, at_ps)
        if sim.due.num[0] and sim.due.at_ps[sim.due.slots[0]] == at_ps:
            continue  # a leap that was cut short ends now
        while sim.dirty[-1]:
            sim.dirty[-1] -= 1
            lane = sim.dirty[sim.dirty[-1]]
            sim.lanes[lane].dirty = 0
            start(sim, lane, at_ps)
        if sim.rules.in_pools:
            settle_pools(sim)


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


def _hand_off_all(sim: Sim, at_ps: int) -> None:
    for n in range(sim.ready[-1]):
        r = sim.ready[n]
        if choose_decode(sim, r):
            hand_off(sim, r, at_ps)
        else:
            give_up(sim, r, at_ps)
    sim.ready[-1] = 0
