"""Splitwise's cluster scheduler by the rules of its published simulator.

Three pools. A prompt goes to the prompt machine with the fewest pending tokens, else, where its
queue is long, to a mixed one, else a token machine is taken into the mixed pool for it. An answer
goes to the token machine with the least memory promised, with the same ways out. A machine returns
to its own pool once it has nothing to do at all.
"""

from planner.sim.heap import NONE
from planner.sim.state import FLIGHT, LAND, QUEUE, Sim, length
from policy.table import DECODE_ROLE, MIXED_ROLE, PREFILL_ROLE

ANY = -1


def choose_in_pools(sim: Sim, r: int) -> None:
    """Both machines of a request are chosen as it comes; none where it fits nowhere."""
    request = sim.requests[r]
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
    sim.lanes[p].pool_memory += request.prompt
    promise(sim, r, d)


def promise(sim: Sim, r: int, d: int) -> None:
    """A token machine's memory, until the answer has ended; the prompt's, while that lies
    elsewhere, is the prompt machine's until it has moved."""
    request = sim.requests[r]
    sim.lanes[d].pool_memory += request.prompt + request.output
    if d == request.prefill_by:
        sim.lanes[d].pool_memory -= request.prompt


def settle_pools(sim: Sim) -> None:
    """Machines that have nothing to do return to their own pool."""
    for i in range(len(sim.lanes)):
        lane = sim.lanes[i]
        if lane.pool == MIXED_ROLE != sim.table.role[i] and _is_idle(sim, i):
            lane.pool = sim.table.role[i]


def _is_idle(sim: Sim, i: int) -> bool:
    if sim.lanes[i].busy or sim.lanes[i].num_running:
        return False
    return length(sim, i, QUEUE) + length(sim, i, FLIGHT) + length(sim, i, LAND) == 0


def _take(sim: Sim, i: int) -> int:
    if i != NONE:
        sim.lanes[i].pool = MIXED_ROLE
    return i


def _is_in(sim: Sim, r: int, i: int, pool: int) -> bool:
    request, lane = sim.requests[r], sim.lanes[i]
    fits = lane.capacity >= request.prompt + request.output - 1
    return bool(sim.table.alive[i] and fits and (pool == ANY or lane.pool == pool))


def _least_pending(sim: Sim, r: int, pool: int) -> int:
    best = NONE
    for i in range(len(sim.lanes)):
        if _is_in(sim, r, i, pool) and (
            best == NONE or sim.lanes[i].pool_pending < sim.lanes[best].pool_pending
        ):
            best = i
    return best


def _least_memory(sim: Sim, r: int, pool: int) -> int:
    best = NONE
    for i in range(len(sim.lanes)):
        if _is_in(sim, r, i, pool) and (
            best == NONE or sim.lanes[i].pool_memory < sim.lanes[best].pool_memory
        ):
            best = i
    return best


def _prompt_machine(sim: Sim, r: int, pool: int) -> int:
    best = _least_pending(sim, r, pool)
    if best == NONE:
        return NONE
    pending = sim.lanes[best].pool_pending + sim.requests[r].prompt
    is_long = length(sim, best, QUEUE) > 0 and pending > sim.rules.mixed_pending_tokens
    return NONE if is_long else best


def _token_machine(sim: Sim, r: int, pool: int) -> int:
    best = _least_memory(sim, r, pool)
    if best == NONE:
        return NONE
    request, lane = sim.requests[r], sim.lanes[best]
    is_full = lane.pool_memory + request.prompt + request.output >= lane.capacity
    return NONE if is_full else best
