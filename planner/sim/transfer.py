"""A request's KV on its way: reserve room, send, land. One owner of a request's handoff."""

from planner.sim.heap import NONE, schedule
from planner.sim.lane import RETRY, freed, hold, interrupt, room, wake
from planner.sim.links import send, unsend
from planner.sim.state import (
    BODY,
    IN_TWO,
    LAND,
    LANDED,
    LANDING,
    MOVING,
    NUM_MISSES,
    NUM_PREEMPTIONS,
    NUM_TRANSFERS,
    PREFILLING,
    QUEUE,
    QUEUED,
    REFUSED,
    TAIL,
    WAIT,
    WAITING,
    WHOLE,
    WHOLE_ANSWERS,
    Sim,
    first,
    length,
    mark,
    pop,
    push,
    put_back,
)


def hand_off(sim: Sim, r: int, at_ps: int) -> None:
    """Of a request whose prompt is read and whose decode lane is chosen."""
    request = sim.requests[r]
    p, d = request.prefill_by, request.decode_by
    if p == d:
        _stay(sim, r, at_ps)
    elif request.part == BODY:
        request.state = MOVING  # its last layer follows the others
        if request.left < 0:
            _send_tail(sim, r, at_ps)
    elif sim.rules.retry_ps:
        _ask_for_room(sim, r, at_ps)
    else:
        request.state = WAITING
        push(sim, d, WAIT, r)
        mark(sim.retry, sim.lanes, d, RETRY)


def _stay(sim: Sim, r: int, at_ps: int) -> None:
    """Whoever has read the prompt writes the answer, too."""
    request = sim.requests[r]
    i = request.decode_by
    # Chosen only now, it has not yet taken the memory of a whole answer.
    takes_all = sim.lanes[i].reserves == WHOLE_ANSWERS
    more = request.prompt + request.output - 1 - request.held if takes_all else 0
    if more > room(sim, i, at_ps):
        hold(sim, i, -request.held)
        request.held = request.computed = 0
        request.state = QUEUED
        put_back(sim, i, r)
        sim.lanes[i].pool_pending += request.prompt
        sim.table.num_prefilling[i] += 1
        sim.table.num_pending_prompt_tokens[i] += request.prompt + request.emitted
        sim.counters[NUM_PREEMPTIONS] += 1
        freed(sim, i, at_ps)
        return
    hold(sim, i, more)
    request.reserved, request.held = request.held + more, 0
    _land(sim, r, at_ps)


def _ask_for_room(sim: Sim, r: int, at_ps: int) -> None:
    """Send if there is room; else ask again later."""
    request = sim.requests[r]
    if _reserve(sim, request.decode_by, r, at_ps):
        _send_whole(sim, r, at_ps)
        return
    request.state = WAITING
    schedule(sim.due, 2 * len(sim.lanes) + r, at_ps + sim.rules.retry_ps)


def refuse(sim: Sim, r: int) -> None:
    """It will never have an answer."""
    request = sim.requests[r]
    request.state, request.prefill_by = REFUSED, NONE
    sim.counters[NUM_MISSES] += 1


def give_up(sim: Sim, r: int, at_ps: int) -> None:
    """Of a request whose answer nobody is left to write."""
    request = sim.requests[r]
    p = request.prefill_by
    sim.lanes[p].pool_memory -= request.prompt + 1
    hold(sim, p, -request.held)
    request.held = 0
    freed(sim, p, at_ps)
    refuse(sim, r)


def retry(sim: Sim, d: int, at_ps: int) -> None:
    """Reserve room at a lane for those who wait for it, first come first served."""
    while sim.table.alive[d] and length(sim, d, WAIT):
        r = first(sim, d, WAIT)
        if not _reserve(sim, d, r, at_ps):
            return
        pop(sim, d, WAIT)
        _send_whole(sim, r, at_ps)


def _send_whole(sim: Sim, r: int, at_ps: int) -> None:
    request = sim.requests[r]
    request.state, request.part = MOVING, WHOLE
    tokens = request.prompt + request.emitted - 1
    _send(sim, r, tokens * sim.kinds.rules[sim.lanes[request.prefill_by].kind].kv_bytes, at_ps)


def start_body(sim: Sim, r: int, at_ps: int, end_ps: int) -> None:
    """Send layers while later ones are computed, if the prompt is long enough and there is room."""
    request = sim.requests[r]
    p, d = request.prefill_by, request.decode_by
    layers = sim.kinds.rules[sim.lanes[p].kind].layers
    if d < 0 or d == p or layers < 2 or request.part or not sim.table.alive[d]:
        return
    tokens = request.prompt + request.emitted
    if tokens < sim.rules.layerwise_from or request.emitted + 1 >= request.output:
        return
    num_bytes = tokens * sim.kinds.rules[sim.lanes[p].kind].kv_bytes * (layers - 1) / layers
    if num_bytes == 0 or length(sim, d, WAIT) or not _reserve(sim, d, r, at_ps):
        return
    request.part = BODY
    request.most = num_bytes / (end_ps - at_ps)
    send(sim, r, num_bytes, at_ps)


def end_transfer(sim: Sim, r: int, at_ps: int) -> None:
    """What was sent last has arrived."""
    request = sim.requests[r]
    if request.state == LANDING:
        _land(sim, r, at_ps)
        return
    if request.state == WAITING:
        _ask_for_room(sim, r, at_ps)
        return
    unsend(sim, r, at_ps)
    if request.part == BODY:
        request.left = -1.0
        if request.state != PREFILLING:
            _send_tail(sim, r, at_ps)
    else:
        _arrive(sim, r, at_ps)


def _reserve(sim: Sim, d: int, r: int, at_ps: int) -> bool:
    request = sim.requests[r]
    tokens = request.prompt + request.emitted - (request.state != PREFILLING)
    if sim.lanes[d].reserves == IN_TWO:
        tokens = request.prompt + request.emitted + (request.state == PREFILLING)
    elif sim.lanes[d].reserves:
        # Until its last token, which needs no memory of its own.
        tokens = request.prompt + request.output - 1
    if tokens > room(sim, d, at_ps):
        return False
    request.reserved = tokens
    hold(sim, d, tokens)
    if not sim.lanes[d].reserves:
        interrupt(sim, d, at_ps)
    return True


def _send_tail(sim: Sim, r: int, at_ps: int) -> None:
    request = sim.requests[r]
    rules = sim.kinds.rules[sim.lanes[request.prefill_by].kind]
    request.part = TAIL
    tokens = request.prompt + request.emitted - 1
    _send(sim, r, tokens * rules.kv_bytes / rules.layers, at_ps)


def _send(sim: Sim, r: int, num_bytes: float, at_ps: int) -> None:
    sim.counters[NUM_TRANSFERS] += 1
    if send(sim, r, num_bytes, at_ps):
        return
    _arrive(sim, r, at_ps)


def _arrive(sim: Sim, r: int, at_ps: int) -> None:
    """All bytes are there; what every handoff takes beside them follows."""
    if sim.rules.handoff_ps == 0:
        _land(sim, r, at_ps)
        return
    sim.requests[r].state = LANDING
    schedule(sim.due, 2 * len(sim.lanes) + r, at_ps + sim.rules.handoff_ps)


def _land(sim: Sim, r: int, at_ps: int) -> None:
    request = sim.requests[r]
    p, d = request.prefill_by, request.decode_by
    if p != d:
        request.handoff = at_ps
        sim.lanes[p].pool_memory -= request.prompt + 1
        hold(sim, p, -request.held)
        request.held = 0
        freed(sim, p, at_ps)
        if length(sim, p, QUEUE):
            wake(sim, p, at_ps)
    request.state, request.part, request.passed = LANDED, 0, 0
    push(sim, d, LAND, r)
    wake(sim, d, at_ps)
