"""Splitwise's cluster scheduler by the rules of its published simulator.

Three pools. A prompt goes to the prompt machine with the fewest pending tokens, else, where its
queue is long, to a mixed one, else a token machine is taken into the mixed pool for it. An answer
goes to the token machine with the least memory promised, with the same ways out. A machine returns
to its own pool as it ends the last it has to do; of equals the first in its pool is chosen.
"""

from planner.sim.heap import NONE
from planner.sim.state import FLIGHT, LAND, NUM_LISTS, PUT_OFF, QUEUE, STAMP, Sim, length
from policy.table import DECODE_ROLE, MIXED_ROLE, PREFILL_ROLE

ANY = -1


def choose_in_pools(sim: Sim, r: int) -> None:
    """Both machines of a request are chosen as it comes; none where it fits nowhere. Where all are
    mixed from the beginning one does both: the published baseline."""
    request = sim.requests[r]
    p, d = NONE, NONE
    if _has_pools(sim):
        p = _prompt_machine(sim, r, PREFILL_ROLE)
        p = p if p != NONE else _prompt_machine(sim, r, MIXED_ROLE)
        d = _token_machine(sim, r, DECODE_ROLE)
        d = d if d != NONE else _token_machine(sim, r, MIXED_ROLE)
        if p == NONE:
            p = _take(sim, _least_pending(sim, r, DECODE_ROLE))
        if d == NONE:
            d = _take(sim, _least_memory(sim, r, PREFILL_ROLE))
    if p == NONE or d == NONE:
        p = d = _least_pending(sim, r, ANY)
    if p == NONE:
        return
    request.prefill_by = p
    request.decode_by = d
    sim.table.num_incoming[d] += 1
    sim.lanes[p].pool_pending += request.prompt
    sim.lanes[p].pool_memory += request.prompt + 1
    promise(sim, r, d)


def promise(sim: Sim, r: int, d: int) -> None:
    """A token machine's memory, and a token of its work, until the answer has ended; the prompt's,
    while that lies elsewhere, is the prompt machine's until it has moved."""
    request = sim.requests[r]
    sim.lanes[d].pool_memory += request.prompt + request.output
    sim.lanes[d].pool_pending += 1
    if d == request.prefill_by:
        sim.lanes[d].pool_memory -= request.prompt + 1


def settle_pool(sim: Sim, i: int) -> None:
    """A machine that has just done the last it had returns to its own pool."""
    lane = sim.lanes[i]
    if not lane.ended:
        return
    lane.ended = 0
    if lane.pool == MIXED_ROLE != sim.table.role[i] and _is_idle(sim, i):
        _enter(sim, i, sim.table.role[i])


def _is_idle(sim: Sim, i: int) -> bool:
    if sim.lanes[i].busy or sim.lanes[i].num_running:
        return False
    return _num_pending(sim, i) + length(sim, i, FLIGHT) == 0


def _num_pending(sim: Sim, i: int) -> int:
    return length(sim, i, QUEUE) + length(sim, i, LAND) + length(sim, i, PUT_OFF)


def _has_queue(sim: Sim, i: int) -> bool:
    """Whether somebody waits there, be it an answer for its own prompt."""
    if _num_pending(sim, i):
        return True
    r, left = sim.lists.head[i * NUM_LISTS + FLIGHT], length(sim, i, FLIGHT)
    while left > 0:
        if sim.requests[r].decode_by == i:
            return True
        r = sim.requests[r].next
        left -= 1
    return False


def _has_pools(sim: Sim) -> bool:
    num_mixed = 0
    for i in range(len(sim.lanes)):
        num_mixed += sim.table.role[i] == MIXED_ROLE
    return num_mixed < len(sim.lanes)


def _take(sim: Sim, i: int) -> int:
    if i != NONE:
        _enter(sim, i, MIXED_ROLE)
    return i


def _enter(sim: Sim, i: int, pool: int) -> None:
    """At a pool's end: of equals the first one is chosen."""
    sim.lanes[i].pool, sim.lanes[i].pool_since = pool, sim.counters[STAMP]
    sim.counters[STAMP] += 1


def _is_in(sim: Sim, r: int, i: int, pool: int) -> bool:
    request, lane = sim.requests[r], sim.lanes[i]
    fits = lane.capacity >= request.prompt + request.output - 1
    return bool(sim.table.alive[i] and fits and (pool == ANY or lane.pool == pool))


def _least_pending(sim: Sim, r: int, pool: int) -> int:
    best = NONE
    for i in range(len(sim.lanes)):
        if _is_in(sim, r, i, pool) and (best == NONE or _is_before(sim, i, best)):
            best = i
    return best


def _is_before(sim: Sim, i: int, other: int) -> bool:
    """By tokens that wait; of equals by pool: prompts, mixed, answers; of these the first there."""
    one, two = sim.lanes[i], sim.lanes[other]
    if one.pool_pending != two.pool_pending:
        return bool(one.pool_pending < two.pool_pending)
    if one.pool != two.pool:
        return bool(one.pool == PREFILL_ROLE or two.pool == DECODE_ROLE)
    return bool(one.pool_since < two.pool_since)


def _least_memory(sim: Sim, r: int, pool: int) -> int:
    best = NONE
    for i in range(len(sim.lanes)):
        if _is_in(sim, r, i, pool) and (best == NONE or _is_emptier(sim, i, best)):
            best = i
    return best


def _is_emptier(sim: Sim, i: int, other: int) -> bool:
    """By tokens promised; of equals the first there."""
    one, two = sim.lanes[i], sim.lanes[other]
    if one.pool_memory != two.pool_memory:
        return bool(one.pool_memory < two.pool_memory)
    return bool(one.pool_since < two.pool_since)


def _prompt_machine(sim: Sim, r: int, pool: int) -> int:
    best = _least_pending(sim, r, pool)
    if best == NONE:
        return NONE
    pending = sim.lanes[best].pool_pending + sim.requests[r].prompt
    is_long = _has_queue(sim, best) and pending > sim.rules.mixed_pending_tokens
    return NONE if is_long else best


def _token_machine(sim: Sim, r: int, pool: int) -> int:
    best = _least_memory(sim, r, pool)
    if best == NONE:
        return NONE
    request, lane = sim.requests[r], sim.lanes[best]
    is_full = lane.pool_memory + request.prompt + request.output > lane.capacity
    return NONE if is_full else best
