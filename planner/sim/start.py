"""What a lane does next: who joins, which prompts are read, how many steps it leaps."""

from planner.sim.heap import drop_key, push_key, schedule
from planner.sim.lane import freed, has_landed, hold, report, room
from planner.sim.leap import MAX_LEAP, span_ps
from planner.sim.prefix import cached_tokens
from planner.sim.state import (
    FLIGHT,
    IN_TWO,
    LAND,
    LEAPS_AT_MOST,
    NEW,
    NUM_PREEMPTIONS,
    NUM_SINGLE,
    PREFILLING,
    QUEUE,
    QUEUED,
    REQUEST_BITS,
    RUNNING,
    Sim,
    first,
    length,
    pop,
    push,
    put_back,
    remove,
    times_of,
)
from planner.sim.transfer import start_body
from policy.step_times import decode_ps, mixed_s, prefill_s, prefill_stage_s, segment_of, whole_ps

CHUNKED = 2
JOINED, SPLITWISE = 1, 3


def settle(sim: Sim, i: int, at_ps: int) -> None:
    """Before a lane's next step: who joins the batch, and who is put off."""
    lane = sim.lanes[i]
    if lane.busy or not sim.table.alive[i]:
        return
    if sim.kinds.rules[lane.kind].scheduling == SPLITWISE:
        return  # it chooses its batch all at once
    if has_landed(sim, i):
        _join(sim, i)
    while _make_room(sim, i):
        # Others may have waited for the place in the batch, or for the memory.
        freed(sim, i, at_ps)
        if has_landed(sim, i):
            _join(sim, i)


def start(sim: Sim, i: int, at_ps: int) -> None:
    """Begin a step or a leap, if there is anything to do."""
    lane = sim.lanes[i]
    if lane.busy or not sim.table.alive[i]:
        return
    rules = sim.kinds.rules[lane.kind]
    if length(sim, i, QUEUE) and not (lane.num_running and lane.pauses >= rules.max_pauses):
        if rules.scheduling == CHUNKED:
            begun = _start_chunks(sim, i, at_ps)
        else:
            begun = _start_prompts(sim, i, at_ps, lane.num_running, False)
        if begun:
            return
    elif (
        length(sim, i, QUEUE)
        and rules.scheduling == JOINED
        # Stood still often enough: answers are in this step, whatever its size.
        and _start_prompts(sim, i, at_ps, lane.num_running, True)
    ):
        return
    if lane.num_running:
        leap(sim, i, at_ps)


def _join(sim: Sim, i: int) -> None:
    """Those that have landed, in their order, while the batch has places."""
    lane = sim.lanes[i]
    joined = False
    while has_landed(sim, i) and lane.num_running < lane.max_batch:
        r = pop(sim, i, LAND)
        enter(sim, i, r)
        push(sim, i, NEW, r)
        sim.table.num_incoming[i] -= 1
        joined = True
    if joined:
        report(sim, i)


def enter(sim: Sim, i: int, r: int) -> None:
    """Into the batch."""
    lane, request = sim.lanes[i], sim.requests[r]
    request.state = RUNNING
    end = lane.steps_done + request.output - request.emitted
    push_key(sim.members[i], lane.num_running, (end << REQUEST_BITS) | r)
    lane.num_running += 1
    lane.context += request.prompt + request.emitted - 1
    if not lane.reserves:
        lane.held -= request.reserved
        request.reserved = 0


def _make_room(sim: Sim, i: int) -> bool:
    """Put off the latest answers until each of the others can grow by a token; whether any was."""
    lane = sim.lanes[i]
    any_put_off = False
    while lane.num_running and not lane.reserves:
        if lane.held + lane.context + lane.num_running <= lane.capacity:
            break
        _preempt(sim, i)
        any_put_off = True
    return any_put_off


def _preempt(sim: Sim, i: int) -> None:
    """The answer that came last: its KV is given up and computed again when there is room."""
    lane, keys = sim.lanes[i], sim.members[i]
    mask = (1 << REQUEST_BITS) - 1
    place = 0
    for other in range(1, lane.num_running):
        if keys[other] & mask > keys[place] & mask:
            place = other
    r, end = keys[place] & mask, keys[place] >> REQUEST_BITS
    drop_key(keys, lane.num_running, place)
    remove(sim, i, NEW, r)
    lane.num_running -= 1
    request = sim.requests[r]
    request.emitted = request.output - (end - lane.steps_done)
    lane.context -= request.prompt + request.emitted - 1
    request.state, request.prefill_by, request.computed = QUEUED, i, 0
    put_back(sim, i, r)
    sim.lanes[i].pool_pending += request.prompt
    sim.table.num_prefilling[i] += 1
    sim.table.num_pending_prompt_tokens[i] += request.prompt + request.emitted
    sim.table.num_incoming[i] += 1
    sim.counters[NUM_PREEMPTIONS] += 1
    report(sim, i)


def memory_of(sim: Sim, i: int, r: int) -> int:
    """Tokens that reading a request's input takes here."""
    request = sim.requests[r]
    tokens: int = request.prompt + request.emitted
    if sim.lanes[i].reserves == IN_TWO:
        return tokens + 1
    if request.decode_by == i and sim.lanes[i].reserves:
        tokens += request.output - request.emitted - 1
    return tokens


def _start_prompts(sim: Sim, i: int, at_ps: int, answers: int, forced: bool) -> bool:
    """Whole prompts in one step: up to `step_tokens`, a longer one alone; with answers, where
    the kind joins them and they fit, too."""
    lane = sim.lanes[i]
    rules = sim.kinds.rules[lane.kind]
    num, tokens, pairs = 0, 0, 0
    free = room(sim, i, at_ps)
    seats = lane.max_batch - lane.num_running - length(sim, i, LAND)
    while length(sim, i, QUEUE) and num < rules.max_prompts:
        r = first(sim, i, QUEUE)
        request = sim.requests[r]
        size = request.prompt + request.emitted
        hits = min(cached_tokens(sim, i, r), size - 1)
        fresh = size - hits
        memory = memory_of(sim, i, r)
        if (num and tokens + fresh > rules.step_tokens) or memory > free:
            break
        if request.decode_by == i and seats <= 0:
            break
        seats -= request.decode_by == i
        _take(sim, i, at_ps, memory, hits)
        free -= memory
        num += 1
        tokens += fresh
        pairs += fresh * hits + fresh * (fresh + 1) // 2
    if num == 0:
        return False
    # Answers cannot join prompts that pass a pipeline.
    joins = rules.scheduling == JOINED and answers > 0 and lane.stages == 1
    joins = joins and (forced or tokens + answers <= rules.step_tokens)
    if joins:
        lane.pauses = 0
    elif answers:
        lane.pauses += 1
    if lane.stages > 1:
        _pipeline(sim, i, at_ps, num, tokens, pairs)
    else:
        run_prompts(sim, i, at_ps, tokens, pairs, joins)
    return True


def _take(sim: Sim, i: int, at_ps: int, memory: int, hits: int) -> None:
    """The first prompt of the queue into the step."""
    r = pop(sim, i, QUEUE)
    request = sim.requests[r]
    request.state, request.hits, request.held = PREFILLING, hits, memory
    if request.start < 0:
        request.start = at_ps
    hold(sim, i, memory)
    push(sim, i, FLIGHT, r)


def run_prompts(sim: Sim, i: int, at_ps: int, tokens: int, pairs: int, joins: bool) -> None:
    """One step of a lane that is not pipelined."""
    lane = sim.lanes[i]
    times = times_of(sim.kinds, lane.kind)
    if joins:
        batch = lane.num_running
        seconds = mixed_s(times, tokens, pairs, batch, lane.context + batch)
    else:
        seconds = prefill_s(times, tokens, pairs)
    end_ps = at_ps + whole_ps(seconds)
    lane.busy, lane.has_prompts, lane.began, lane.steps = 1, 1, at_ps, 1 if joins else 0
    if joins:
        _mark_second(sim, i, end_ps)
    sim.counters[NUM_SINGLE] += 1
    schedule(sim.due, i, end_ps)
    _send_bodies(sim, i, at_ps, end_ps, length(sim, i, FLIGHT))


def _pipeline(sim: Sim, i: int, at_ps: int, num: int, tokens: int, pairs: int) -> None:
    """Through the stages one behind the other; the first one is soon free for the next step."""
    lane = sim.lanes[i]
    times = times_of(sim.kinds, lane.kind)
    end_ps = at_ps
    for stage in range(lane.stages):
        begin_ps = max(end_ps, sim.stage_free[i, stage])
        end_ps = begin_ps + whole_ps(prefill_stage_s(times, tokens, pairs, stage))
        sim.stage_free[i, stage] = end_ps
    lane.busy, lane.has_prompts, lane.began, lane.steps = 1, 1, at_ps, 0
    sim.counters[NUM_SINGLE] += 1
    schedule(sim.due, i, sim.stage_free[i, 0])
    r, left = first(sim, i, FLIGHT), length(sim, i, FLIGHT)
    if left == num > 0:
        schedule(sim.due, len(sim.lanes) + i, end_ps)
    while left > 0:
        if left <= num:
            sim.requests[r].batch_end = end_ps
        r = sim.requests[r].next
        left -= 1
    _send_bodies(sim, i, at_ps, end_ps, num)


def _send_bodies(sim: Sim, i: int, at_ps: int, end_ps: int, num: int) -> None:
    """Layer by layer, of the last `num` prompts in flight that are long enough for it."""
    if sim.rules.layerwise_from >= 1 << 40:
        return
    r, left = first(sim, i, FLIGHT), length(sim, i, FLIGHT)
    while left > 0:
        following = sim.requests[r].next
        if left <= num:
            start_body(sim, r, at_ps, end_ps)
        r = following
        left -= 1


def _start_chunks(sim: Sim, i: int, at_ps: int) -> bool:
    """A step of all answers and of parts of prompts."""
    lane = sim.lanes[i]
    rules = sim.kinds.rules[lane.kind]
    budget = rules.step_tokens - lane.num_running
    free = room(sim, i, at_ps)
    seats = lane.max_batch - lane.num_running - length(sim, i, LAND)
    num, num_read, tokens, pairs = 0, 0, 0, 0
    while length(sim, i, QUEUE) and tokens < budget and num < rules.max_prompts:
        r = first(sim, i, QUEUE)
        request = sim.requests[r]
        size = request.prompt + request.emitted
        if request.computed == 0:
            memory = memory_of(sim, i, r)
            if memory > free or (request.decode_by == i and seats <= 0):
                break
            free -= memory
            request.held = memory
            hold(sim, i, memory)
            request.hits = min(cached_tokens(sim, i, r), size - 1)
            request.computed = request.hits
            if request.start < 0:
                request.start = at_ps
        seats -= request.decode_by == i
        chunk = min(size - request.computed, budget - tokens)
        pairs += chunk * request.computed + chunk * (chunk + 1) // 2
        tokens += chunk
        num += 1
        request.computed += chunk
        if request.computed < size:
            break
        pop(sim, i, QUEUE)
        request.state = PREFILLING
        push(sim, i, FLIGHT, r)
        num_read += 1
    if tokens == 0:
        return False
    if lane.stages > 1:
        lane.pauses += lane.num_running > 0
        _pipeline(sim, i, at_ps, num_read, tokens, pairs)
    else:
        run_prompts(sim, i, at_ps, tokens, pairs, lane.num_running > 0)
    return True


def leap(sim: Sim, i: int, at_ps: int) -> None:
    """Steps of answers alone, until the first that ends or until something else changes."""
    lane, kinds = sim.lanes[i], sim.kinds
    batch = lane.num_running
    rules = kinds.rules[lane.kind]
    times = times_of(kinds, lane.kind)
    j = segment_of(times, batch, lane.context + batch)
    steps = (sim.members[i, 0] >> REQUEST_BITS) - lane.steps_done
    if j + 1 < times.decode_starts.shape[1]:
        steps = min(steps, (times.decode_starts[batch, j + 1] - 1 - lane.context) // batch)
    if not lane.reserves:
        steps = min(steps, (lane.capacity - lane.held - lane.context) // batch)
    steps = max(1, min(steps, min(MAX_LEAP, sim.counters[LEAPS_AT_MOST])))
    if length(sim, i, QUEUE) and lane.pauses >= rules.max_pauses:
        steps = 1
    lane.pauses = 0
    lane.base, lane.slope = times.decode_base_ps[batch, j], times.decode_slope_ps[batch, j]
    lane.busy, lane.has_prompts, lane.began, lane.steps = 1, 0, at_ps, steps
    _mark_second(sim, i, at_ps + decode_ps(times, batch, lane.context + batch))
    span = span_ps(lane.base, lane.slope, lane.context, batch, steps)
    schedule(sim.due, i, at_ps + span)


def _mark_second(sim: Sim, i: int, end_ps: int) -> None:
    """When those whose first step of answers this is get its token."""
    while length(sim, i, NEW):
        request = sim.requests[pop(sim, i, NEW)]
        if request.second < 0:
            request.second = end_ps
