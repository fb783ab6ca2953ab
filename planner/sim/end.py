"""What has come of a step: answers that grew or ended, prompts that are read."""

from planner.sim.heap import drop_key, schedule
from planner.sim.lane import DIRTY, count_steps, freed, hold, report
from planner.sim.prefix import keep
from planner.sim.state import (
    DONE,
    FLIGHT,
    NUM_MISSES,
    REQUEST_BITS,
    Sim,
    ask_for,
    first,
    length,
    mark,
    pop,
)
from policy.step_times import PS_PER_S


def end_step(sim: Sim, i: int, at_ps: int) -> None:
    """Of a lane's step or leap; of a pipelined one, that its first stage is free."""
    lane = sim.lanes[i]
    lane.busy, lane.ended = 0, 1
    if lane.has_prompts:
        lane.has_prompts, lane.calls = 0, 1
        lane.busy_prefill += at_ps - lane.began
        if lane.stages == 1:
            while length(sim, i, FLIGHT):
                _end_prompt(sim, i, pop(sim, i, FLIGHT), at_ps)
    else:
        lane.busy_decode += at_ps - lane.began
        count_steps(sim, lane.steps)
    if lane.steps:
        _advance(sim, i, at_ps)
    mark(sim.dirty, sim.lanes, i, DIRTY)


def end_pipeline(sim: Sim, i: int, at_ps: int) -> None:
    """A batch has left the last stage."""
    while length(sim, i, FLIGHT) and sim.requests[first(sim, i, FLIGHT)].batch_end <= at_ps:
        _end_prompt(sim, i, pop(sim, i, FLIGHT), at_ps)
    if length(sim, i, FLIGHT):
        schedule(sim.due, len(sim.lanes) + i, sim.requests[first(sim, i, FLIGHT)].batch_end)


def _advance(sim: Sim, i: int, at_ps: int) -> None:
    """Every answer of the batch by the steps that were done; those that end leave it."""
    lane, keys = sim.lanes[i], sim.members[i]
    lane.context += lane.steps * lane.num_running
    lane.steps_done += lane.steps
    lane.steps = 0
    ended = False
    while lane.num_running and keys[0] >> REQUEST_BITS <= lane.steps_done:
        r = keys[0] & ((1 << REQUEST_BITS) - 1)
        drop_key(keys, lane.num_running, 0)
        lane.num_running -= 1
        request = sim.requests[r]
        lane.context -= request.prompt + request.output - 1
        _finish(sim, r, at_ps)
        ended = True
    if ended:
        lane.calls = 1
        report(sim, i)
        freed(sim, i, at_ps)


def _finish(sim: Sim, r: int, at_ps: int) -> None:
    request = sim.requests[r]
    request.emitted, request.last, request.state = request.output, at_ps, DONE
    if request.reserved:
        hold(sim, request.decode_by, -request.reserved)
        request.reserved = 0
    if request.decode_by >= 0:
        lane = sim.lanes[request.decode_by]
        lane.pool_pending -= 1
        lane.pool_memory -= request.prompt + request.output
    _judge(sim, r)


def _end_prompt(sim: Sim, i: int, r: int, at_ps: int) -> None:
    """One more token; what follows it is decided once all steps of this moment have ended."""
    request, table = sim.requests[r], sim.table
    size = request.prompt + request.emitted
    keep(sim, i, r)
    table.num_prefilling[i] -= 1
    table.num_pending_prompt_tokens[i] -= size
    sim.lanes[i].pool_pending -= request.prompt
    request.emitted += 1
    if request.first < 0:
        request.first = at_ps
    elif request.second < 0:
        request.second = at_ps
    if request.emitted < request.output:
        ask_for(sim, r)
        return
    hold(sim, i, -request.held)
    request.held = 0
    if request.decode_by >= 0:
        sim.table.num_incoming[request.decode_by] -= 1
    if request.decode_by != i:
        # Also where whoever was to write the answer has been lost meanwhile.
        sim.lanes[i].pool_memory -= request.prompt + 1
    _finish(sim, r, at_ps)
    freed(sim, i, at_ps)


def _judge(sim: Sim, r: int) -> None:
    """Whether an answer that ended has kept its limits."""
    request, limits = sim.requests[r], sim.limits
    which = sim.classes[r]
    # The very divisions of `Outcome.met`: the last bit decides alike.
    late = (request.first - request.arrival) / PS_PER_S > limits.ttft_s[which]
    late |= (request.last - request.arrival) / PS_PER_S > limits.e2e_s[which]
    if request.output > 1:
        span_s = (request.last - request.first) / PS_PER_S
        late |= span_s / (request.output - 1) > limits.tpot_s[which]
    sim.counters[NUM_MISSES] += late
