"""Instances that are lost, come back, or take another role."""

from planner.sim.heap import NONE
from planner.sim.lane import DIRTY, count_steps, freed, hold, report, stop
from planner.sim.leap import span_ps, steps_until
from planner.sim.links import unsend
from planner.sim.prefix import forget
from planner.sim.state import (
    DONE,
    FUTURE,
    LANDED,
    LANDING,
    MOVING,
    NUM_LISTS,
    PREFILLING,
    QUEUED,
    REFUSED,
    REQUEST_BITS,
    RUNNING,
    WAIT,
    WAITING,
    Sim,
    ask_for,
    mark,
    remove,
)
from policy.table import MIXED_ROLE

LOST, BACK = -1, -2
AGAIN = -2
"""Start of a request that is to be placed anew in this moment."""


def change(sim: Sim, n: int, at_ps: int) -> bool:
    """The n-th change of the schedule; whether requests have lost an instance by it."""
    i, what = sim.changes[n, 1], sim.changes[n, 2]
    if what == LOST:
        lose(sim, i, at_ps)
    elif what == BACK:
        sim.table.alive[i] = True
        mark(sim.dirty, sim.lanes, i, DIRTY)
    else:
        sim.table.role[i] = what
        if sim.lanes[i].pool != MIXED_ROLE:
            sim.lanes[i].pool = what
    return bool(what == LOST)


def lose(sim: Sim, i: int, at_ps: int) -> None:
    """Everything that a lane held is gone; its requests begin anew elsewhere, with the tokens
    that have been delivered."""
    if not sim.table.alive[i]:
        return
    sim.table.alive[i] = False
    _note_emitted(sim, i, at_ps)
    stop(sim, i, at_ps)
    # First all leave, then all are placed: nobody is placed by the books of one that is gone.
    for r in range(len(sim.requests)):
        if _is_hit(sim, r, i):
            _leave(sim, r, i, at_ps)
    _empty(sim, i, at_ps)


def ask_again(sim: Sim) -> None:
    """For all that have lost an instance in this moment, and only once for each."""
    for r in range(len(sim.requests)):
        request = sim.requests[r]
        again = request.state == FUTURE and request.start == AGAIN
        if again or (request.state == WAITING and request.decode_by == NONE):
            ask_for(sim, r)


def _is_hit(sim: Sim, r: int, i: int) -> bool:
    request = sim.requests[r]
    if request.state in (FUTURE, DONE, REFUSED):
        return False
    return bool(request.prefill_by == i or request.decode_by == i)


def _note_emitted(sim: Sim, i: int, at_ps: int) -> None:
    """Tokens of steps that have ended are delivered."""
    from_leap = 0
    lane = sim.lanes[i]
    if lane.busy and lane.steps and not lane.has_prompts:
        from_leap = _ended_steps(sim, i, at_ps)
        count_steps(sim, from_leap)
    for place in range(lane.num_running):
        key = sim.members[i, place]
        request = sim.requests[key & ((1 << REQUEST_BITS) - 1)]
        left = (key >> REQUEST_BITS) - lane.steps_done - from_leap
        request.emitted = request.output - left
        if request.emitted < 2:
            request.second = NONE  # of the step that never ends


def _ended_steps(sim: Sim, i: int, at_ps: int) -> int:
    lane = sim.lanes[i]
    batch, span = lane.num_running, at_ps - lane.began
    steps = steps_until(lane.base, lane.slope, lane.context, batch, span)
    if span_ps(lane.base, lane.slope, lane.context, batch, steps) > span:
        steps -= 1
    return steps


def _leave(sim: Sim, r: int, i: int, at_ps: int) -> None:
    """A request whose instance of either phase is lost."""
    request, table = sim.requests[r], sim.table
    p, d, state = request.prefill_by, request.decode_by, request.state
    if d != i and d != NONE and state != RUNNING:
        table.num_incoming[d] -= 1
    if d == i and p != i and state in (QUEUED, PREFILLING):
        # Its prompt goes on being read; who writes the answer is chosen once it is.
        _stop_moving(sim, r, at_ps)
        request.decode_by, request.reserved = NONE, 0
        return
    if d == i and p != i and state in (WAITING, MOVING, LANDING):
        _stop_moving(sim, r, at_ps)
        remove(sim, i, WAIT, r)
        request.state, request.decode_by, request.reserved = WAITING, NONE, 0
        return
    _stop_moving(sim, r, at_ps)
    if d != i and d != NONE:
        remove(sim, d, WAIT, r)
        if request.reserved and state not in (LANDED, RUNNING):
            hold(sim, d, -request.reserved)
            freed(sim, d, at_ps)
    if d != i and state in (LANDED, RUNNING):
        table.num_incoming[d] += state != RUNNING
        return  # its KV is where it is written
    if d != i and d != NONE:
        sim.lanes[d].pool_memory -= request.prompt + request.output
        sim.lanes[d].pool_pending -= 1
    request.state, request.start = FUTURE, AGAIN
    request.prefill_by = request.decode_by = NONE
    request.reserved = request.held = request.computed = request.hits = 0


def _stop_moving(sim: Sim, r: int, at_ps: int) -> None:
    request = sim.requests[r]
    if request.state in (WAITING, MOVING, LANDING) or request.part:
        unsend(sim, r, at_ps)
    request.part = 0


def _empty(sim: Sim, i: int, at_ps: int) -> None:
    """As a lane that has just begun."""
    lane, table = sim.lanes[i], sim.table
    for which in range(NUM_LISTS):
        sim.lists.num[i * NUM_LISTS + which] = 0
    lane.num_running = lane.context = lane.held = lane.pauses = 0
    lane.calls = lane.ended = 0
    lane.pool_pending = lane.pool_memory = 0
    for stage in range(sim.stage_free.shape[1]):
        sim.stage_free[i, stage] = at_ps
    table.num_prefilling[i] = table.num_pending_prompt_tokens[i] = table.num_incoming[i] = 0
    forget(sim.caches, i)
    report(sim, i)
