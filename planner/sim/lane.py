"""One executor: an instance, or one of the lanes in which a pipelined instance writes answers.

A step that runs is never changed; a leap of several may end early, at the end of any of its steps.
"""

from planner.sim.heap import cancel, schedule
from planner.sim.leap import span_ps, steps_until
from planner.sim.state import LAND, NUM_LEAPS, NUM_LEAPT, NUM_SINGLE, QUEUE, WAIT, Sim, length, mark

DIRTY, RETRY = 0, 1


def boundary_steps(sim: Sim, i: int, at_ps: int) -> int:
    """Steps of the leap that runs which have begun before a moment; they end at or after it."""
    lane = sim.lanes[i]
    if not lane.busy or lane.steps == 0:
        return 0
    if lane.has_prompts:
        return 1 if at_ps > lane.began else 0
    span = at_ps - lane.began
    steps: int = steps_until(lane.base, lane.slope, lane.context, lane.num_running, span)
    return steps


def context_at(sim: Sim, i: int, at_ps: int) -> int:
    """Tokens of running answers once the step that runs has ended."""
    lane = sim.lanes[i]
    tokens: int = lane.context + boundary_steps(sim, i, at_ps) * lane.num_running
    return tokens


def room(sim: Sim, i: int, at_ps: int) -> int:
    """Tokens that can be taken while every running answer still grows by one."""
    lane = sim.lanes[i]
    tokens: int = lane.capacity - lane.held
    if not lane.reserves:
        tokens -= context_at(sim, i, at_ps) + lane.num_running
    return tokens


def interrupt(sim: Sim, i: int, at_ps: int) -> None:
    """End a leap with the step that runs: something has changed that its length depended on."""
    lane = sim.lanes[i]
    if not lane.busy or lane.steps <= 1:
        return
    steps = max(1, boundary_steps(sim, i, at_ps))
    if steps < lane.steps:
        lane.steps = steps
        span = span_ps(lane.base, lane.slope, lane.context, lane.num_running, steps)
        schedule(sim.due, i, lane.began + span)


def wake(sim: Sim, i: int, at_ps: int) -> None:
    """Something waits for the lane's next step."""
    sim.lanes[i].calls = 1
    if sim.lanes[i].busy:
        interrupt(sim, i, at_ps)
    else:
        mark(sim.dirty, sim.lanes, i, DIRTY)


def freed(sim: Sim, i: int, at_ps: int) -> None:
    """Memory has become free: for those who wait elsewhere, and for the lane's own prompts."""
    if length(sim, i, WAIT):
        mark(sim.retry, sim.lanes, i, RETRY)
    if not sim.lanes[i].busy:
        mark(sim.dirty, sim.lanes, i, DIRTY)
    elif length(sim, i, QUEUE):
        interrupt(sim, i, at_ps)


def report(sim: Sim, i: int) -> None:
    """What routers see of answers: as of the last change of the batch, not of every step."""
    lane, table = sim.lanes[i], sim.table
    table.num_decoding[i] = lane.num_running
    table.num_context_tokens[i] = lane.context
    report_memory(sim, i)


def report_memory(sim: Sim, i: int) -> None:
    """What routers see of memory."""
    lane, table = sim.lanes[i], sim.table
    used = lane.held if lane.reserves else lane.held + table.num_context_tokens[i]
    table.num_free_blocks[i] = lane.capacity - used


def hold(sim: Sim, i: int, num_tokens: int) -> None:
    """Take memory, or give it back."""
    sim.lanes[i].held += num_tokens
    report_memory(sim, i)


def count_steps(sim: Sim, num_steps: int) -> None:
    """Of answers alone, done in one go."""
    if num_steps > 1:
        sim.counters[NUM_LEAPS] += 1
        sim.counters[NUM_LEAPT] += num_steps
    else:
        sim.counters[NUM_SINGLE] += num_steps


def has_landed(sim: Sim, i: int) -> bool:
    """Whether somebody joins the next step."""
    return length(sim, i, LAND) > 0


def stop(sim: Sim, i: int, at_ps: int) -> None:
    """Whatever runs is lost."""
    lane = sim.lanes[i]
    if lane.busy and lane.has_prompts:
        lane.busy_prefill += at_ps - lane.began
    elif lane.busy:
        lane.busy_decode += at_ps - lane.began
    lane.busy, lane.steps, lane.has_prompts = 0, 0, 0
    cancel(sim.due, i)
    cancel(sim.due, len(sim.lanes) + i)
