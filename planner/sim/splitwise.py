"""What a machine of the published splitwise-sim does next: prompts, then answers, in one step.

Memory for prompt and first token is taken as the prompt is read, or comes; for the rest of the
answer as that joins a batch. A batch is chosen anew only when somebody comes or goes; in between, a
prompt that is longer than a step may be waits.
"""

from typing import NamedTuple

from planner.sim.heap import NONE, drop_key
from planner.sim.lane import hold, report, room
from planner.sim.prefix import cached_tokens
from planner.sim.start import SPLITWISE, enter, leap, memory_of, run_prompts
from planner.sim.state import (
    FLIGHT,
    LAND,
    NEW,
    NUM_LISTS,
    PREFILLING,
    PUT_OFF,
    QUEUE,
    REQUEST_BITS,
    STAMP,
    Sim,
    first,
    length,
    pop,
    push,
    push_front,
    remove,
)

NEVER = 1 << 38
"""Of `max_pauses`: who has waited how long is not counted. Of numbers: none."""


class Batch(NamedTuple):
    """Of the next step, as far as it is chosen."""

    num: int
    prompts: int
    prompt_tokens: int
    pairs: int


def waits_for_end(sim: Sim, i: int, r: int) -> bool:
    """Whether a prompt that comes does not interrupt the answers: a long one whose own answer is
    written elsewhere."""
    lane, request = sim.lanes[i], sim.requests[r]
    rules = sim.kinds.rules[lane.kind]
    if rules.scheduling != SPLITWISE or not (lane.busy or lane.num_running):
        return False
    size = request.prompt + request.emitted
    return bool(size > rules.step_tokens and request.decode_by != i)


def start_selected(sim: Sim, i: int, at_ps: int) -> None:
    """Begin a step or a leap, if there is anything to do."""
    lane = sim.lanes[i]
    if lane.busy or not sim.table.alive[i]:
        return
    batch = Batch(0, 0, 0, 0)
    if lane.calls or not lane.num_running:
        lane.calls = 0
        batch = _select(sim, i, at_ps)
    if batch.prompts:
        run_prompts(sim, i, at_ps, batch.prompt_tokens, batch.pairs, lane.num_running > 0)
    elif lane.num_running:
        leap(sim, i, at_ps)


def _select(sim: Sim, i: int, at_ps: int) -> Batch:
    """Those that have waited too long, prompts, answers: put off, running, new."""
    batch = Batch(0, 0, 0, 0)
    counts = sim.kinds.rules[sim.lanes[i].kind].max_pauses < NEVER
    if counts and _all_waited(sim, i):
        batch = _overdue(sim, i, at_ps, batch)
    while length(sim, i, QUEUE):
        r = first(sim, i, QUEUE)
        more = _with_prompt(sim, i, at_ps, batch, r)
        if more.num == batch.num:
            break
        batch = more
    while length(sim, i, PUT_OFF) and _fits(sim, i, batch, 1):
        batch = _with_answer(sim, i, batch, pop(sim, i, PUT_OFF))
    batch = _with_running(sim, i, batch)
    batch = _with_new(sim, i, at_ps, batch)
    if counts:
        for which in (QUEUE, PUT_OFF, LAND):
            _count(sim, i, which)
    report(sim, i)
    return batch


def _fits(sim: Sim, i: int, batch: Batch, num_tokens: int) -> bool:
    """Anything fits alone."""
    lane = sim.lanes[i]
    if batch.num == 0:
        return True
    tokens = batch.prompt_tokens + batch.num - batch.prompts
    limit = sim.kinds.rules[lane.kind].step_tokens
    return bool(batch.num < lane.max_batch and tokens + num_tokens <= limit)


def _with_prompt(sim: Sim, i: int, at_ps: int, batch: Batch, r: int) -> Batch:
    """As it was where the prompt, or its memory, does not fit."""
    request = sim.requests[r]
    size = request.prompt + request.emitted
    hits = min(cached_tokens(sim, i, r), size - 1)
    fresh, tokens = size - hits, memory_of(sim, i, r)
    if not _fits(sim, i, batch, fresh) or tokens > room(sim, i, at_ps):
        return batch
    remove_first(sim, i, QUEUE, r)
    request.state, request.hits, request.held = PREFILLING, hits, tokens
    if request.start < 0:
        request.start = at_ps
    hold(sim, i, tokens)
    push(sim, i, FLIGHT, r)
    pairs = fresh * hits + fresh * (fresh + 1) // 2
    return Batch(batch.num + 1, batch.prompts + 1, batch.prompt_tokens + fresh, batch.pairs + pairs)


def remove_first(sim: Sim, i: int, which: int, r: int) -> None:
    """Out of a list, at whose beginning it most often is."""
    if first(sim, i, which) == r:
        pop(sim, i, which)
    else:
        remove(sim, i, which, r)


def _with_answer(sim: Sim, i: int, batch: Batch, r: int) -> Batch:
    """One that does not run."""
    enter(sim, i, r)
    sim.requests[r].joined = sim.counters[STAMP]
    sim.counters[STAMP] += 1
    return Batch(batch.num + 1, batch.prompts, batch.prompt_tokens, batch.pairs)


def _with_running(sim: Sim, i: int, batch: Batch) -> Batch:
    """Those that ran before, the first to have joined first; the others are put off."""
    lane = sim.lanes[i]
    answers = batch.num - batch.prompts
    running = lane.num_running - answers
    limit = sim.kinds.rules[lane.kind].step_tokens
    places = min(lane.max_batch - batch.num, limit - batch.prompt_tokens - answers)
    places = max(places, 0)
    if running > places:
        _put_off(sim, i, running - places, sim.counters[STAMP] - answers)
        running = places
    return Batch(batch.num + running, batch.prompts, batch.prompt_tokens, batch.pairs)


def _put_off(sim: Sim, i: int, num: int, before: int) -> None:
    """The last to have joined of those that did before; behind those that are put off already."""
    lane, keys = sim.lanes[i], sim.members[i]
    mask = (1 << REQUEST_BITS) - 1
    waiting = length(sim, i, PUT_OFF)
    for _ in range(num):
        place, latest = NONE, NONE
        for other in range(lane.num_running):
            joined = sim.requests[keys[other] & mask].joined
            if latest < joined < before:
                place, latest = other, joined
        r, end = keys[place] & mask, keys[place] >> REQUEST_BITS
        drop_key(keys, lane.num_running, place)
        lane.num_running -= 1
        request = sim.requests[r]
        request.emitted = request.output - (end - lane.steps_done)
        lane.context -= request.prompt + request.emitted - 1
        push_front(sim, i, PUT_OFF, r)
    if waiting:
        for _ in range(num):
            push(sim, i, PUT_OFF, pop(sim, i, PUT_OFF))


def _with_new(sim: Sim, i: int, at_ps: int, batch: Batch) -> Batch:
    """Those whose KV has come, by arrival of the request; none overtakes one that is left out."""
    bound = min(_least(sim, i, QUEUE, NONE), _least(sim, i, PUT_OFF, NONE))
    while length(sim, i, LAND) and _fits(sim, i, batch, 1):
        r = _least(sim, i, LAND, NONE)
        if r > bound or not _has_room(sim, i, r, at_ps):
            break
        remove_first(sim, i, LAND, r)
        batch = _with_landed(sim, i, batch, r)
    return batch


def _has_room(sim: Sim, i: int, r: int, at_ps: int) -> bool:
    """For what an answer has not reserved yet."""
    request = sim.requests[r]
    return bool(request.prompt + request.output - request.reserved <= room(sim, i, at_ps))


def _with_landed(sim: Sim, i: int, batch: Batch, r: int) -> Batch:
    """One that has come out of its list, with all the memory it will need."""
    request = sim.requests[r]
    hold(sim, i, request.prompt + request.output - request.reserved)
    request.reserved = request.prompt + request.output
    push(sim, i, NEW, r)
    sim.table.num_incoming[i] -= 1
    return _with_answer(sim, i, batch, r)


def _least(sim: Sim, i: int, which: int, above: int) -> int:
    """The first number above another one in a list; NEVER where there is none."""
    least: int = NEVER
    r, left = sim.lists.head[i * NUM_LISTS + which], length(sim, i, which)
    while left > 0:
        if above < r < least:
            least = r
        r = sim.requests[r].next
        left -= 1
    return least


def _count(sim: Sim, i: int, which: int) -> None:
    """A step begins without these."""
    r, left = sim.lists.head[i * NUM_LISTS + which], length(sim, i, which)
    while left > 0:
        sim.requests[r].passed += 1
        r = sim.requests[r].next
        left -= 1


def _all_waited(sim: Sim, i: int) -> bool:
    """Whether nobody has waited for fewer than `max_pauses` steps. An answer that waits for its own
    prompt, too, has not waited."""
    limit = sim.kinds.rules[sim.lanes[i].kind].max_pauses
    for which in (QUEUE, PUT_OFF, LAND):
        left = length(sim, i, which)
        r = sim.lists.tail[i * NUM_LISTS + which]  # who came last is who waited least, mostly
        if left and sim.requests[r].passed < limit:
            return False
        r = sim.lists.head[i * NUM_LISTS + which]
        while left > 0:
            request = sim.requests[r]
            if request.passed < limit or (which == QUEUE and request.decode_by == i):
                return False
            r = request.next
            left -= 1
    return True


def _overdue(sim: Sim, i: int, at_ps: int, batch: Batch) -> Batch:
    """All that wait, by steps waited and arrival, while they fit; memory stops none but its own."""
    last = NONE
    while True:
        which, key = NONE, NEVER << REQUEST_BITS
        for other in (QUEUE, PUT_OFF, LAND):
            found = _least_waited(sim, i, other, last)
            if found < key:
                which, key = other, found
        if which == NONE:
            return batch
        last, r = key, key & ((1 << REQUEST_BITS) - 1)
        size = sim.requests[r].prompt + sim.requests[r].emitted if which == QUEUE else 1
        if not _fits(sim, i, batch, size):
            return batch
        if which == QUEUE:
            batch = _with_prompt(sim, i, at_ps, batch, r)
            continue
        if which == PUT_OFF:
            remove_first(sim, i, which, r)
            batch = _with_answer(sim, i, batch, r)
        elif _has_room(sim, i, r, at_ps):
            remove_first(sim, i, which, r)
            batch = _with_landed(sim, i, batch, r)


def _least_waited(sim: Sim, i: int, which: int, above: int) -> int:
    """(Steps waited, request) above another such key; NEVER << REQUEST_BITS: there is none."""
    least: int = NEVER << REQUEST_BITS
    r, left = sim.lists.head[i * NUM_LISTS + which], length(sim, i, which)
    while left > 0:
        key = (sim.requests[r].passed << REQUEST_BITS) | r
        if above < key < least:
            least = key
        r = sim.requests[r].next
        left -= 1
    return least
