"""Who reads a prompt and who writes its answer: the router's own policy, over the same table."""

import numpy as np

from planner.sim.candidates import candidates, pass_over, score_loads
from planner.sim.heap import NONE
from planner.sim.lane import wake
from planner.sim.mixed_pool import choose_in_pools, promise
from planner.sim.prefix import cached_tokens
from planner.sim.splitwise import waits_for_end
from planner.sim.state import (
    DRAW,
    FUTURE,
    NUM_PICKS,
    PREFILLING,
    QUEUE,
    QUEUED,
    WAITING,
    Sim,
    push,
)
from planner.sim.transfer import give_up, hand_off, refuse
from policy.admission import forecast, refusal
from policy.scorers import SLO, pick, slo_decode, slo_prefill
from policy.table import MIXED_ROLE, Ask, Bools, Links, Weights

PREFILL, DECODE = 0, 1
DRAW_PRIME = (1 << 31) - 1


def decide(sim: Sim, r: int, at_ps: int) -> None:
    """On a request that has come, or come back, or whose prompt is read."""
    state = sim.requests[r].state
    if state == FUTURE:
        _arrive(sim, r, at_ps)
    elif state in (PREFILLING, WAITING):
        if _choose_decode(sim, r):
            hand_off(sim, r, at_ps)
        else:
            give_up(sim, r, at_ps)


def _arrive(sim: Sim, r: int, at_ps: int) -> None:
    """Place a request, or refuse it: nobody is there, it fits nowhere, it would come too late."""
    request = sim.requests[r]
    request.start = NONE
    # Whoever has had a first token, and lost the instance, has no time for one to keep.
    is_new = request.first < 0
    if is_new and np.isfinite(sim.rules.max_ttft_s) and _too_late(sim, r):
        refuse(sim, r)
        return
    p = NONE
    if sim.rules.in_pools:
        choose_in_pools(sim, r)
        p = request.prefill_by
    else:
        p = _choose(sim, r, PREFILL)
        request.prefill_by = p
        if p != NONE and sim.table.role[p] == MIXED_ROLE:
            _set_decode(sim, r, p)
        elif p != NONE and sim.rules.pairs_at_arrival:
            _set_decode(sim, r, _choose(sim, r, DECODE))
    if p == NONE:
        refuse(sim, r)
    else:
        enqueue(sim, r, at_ps)


def enqueue(sim: Sim, r: int, at_ps: int) -> None:
    """At the end of its prefill instance's queue."""
    request, table = sim.requests[r], sim.table
    p = request.prefill_by
    request.state, request.passed = QUEUED, 0
    push(sim, p, QUEUE, r)
    table.num_prefilling[p] += 1
    table.num_pending_prompt_tokens[p] += request.prompt + request.emitted
    if not waits_for_end(sim, p, r):
        wake(sim, p, at_ps)


def _choose_decode(sim: Sim, r: int) -> bool:
    """For a request whose prompt is read; False where nobody is left that could take it."""
    request = sim.requests[r]
    if request.decode_by != NONE and sim.table.alive[request.decode_by]:
        return True
    d = _choose(sim, r, DECODE)
    if d != NONE:
        _set_decode(sim, r, d)
        promise(sim, r, d)
    return d != NONE


def _set_decode(sim: Sim, r: int, d: int) -> None:
    """Whoever writes the answer knows that it comes."""
    sim.requests[r].decode_by = d
    sim.table.num_incoming[d] += 1


def _choose(sim: Sim, r: int, phase: int) -> int:
    """The best of those that serve the phase; of all where none does; NONE where nobody is."""
    num, row = candidates(sim, r, phase)
    return _best(sim, r, phase) if num > 1 else row


def _best(sim: Sim, r: int, phase: int) -> int:
    """By the policy, of several."""
    rules, counters = sim.rules, sim.counters
    if rules.policy == SLO:
        _predict(sim, r, phase)
        pass_over(sim, r, phase)
    else:
        score_loads(sim, r, phase)
    # Park and Miller's generator (CACM 36:7, 1993): low bits as random as high ones.
    counters[DRAW] = counters[DRAW] * 48271 % DRAW_PRIME
    counters[NUM_PICKS] += 1
    return pick(sim.scores, rules.policy, counters[NUM_PICKS] - 1, counters[DRAW])


def _predict(sim: Sim, r: int, phase: int) -> None:
    """The `slo` policy looks from one instance at others: whole columns."""
    rules = sim.rules
    links = Links(rules.same_host_s_per_token, rules.other_host_s_per_token, 0.0)
    ask = _ask(sim, r)
    if phase == PREFILL:
        weights = Weights(1.0, 1.0)
        sim.scores[:] = slo_prefill(rules.model, links, weights, sim.policy_table, ask)
    else:
        sim.scores[:] = slo_decode(rules.model, links, sim.policy_table, ask)


def _ask(sim: Sim, r: int) -> Ask:
    request = sim.requests[r]
    for i in range(len(sim.lanes)):
        sim.hits[i] = cached_tokens(sim, i, r)
    return Ask(
        request.prompt + request.emitted,
        request.prompt + request.output,
        sim.hits,
        request.prefill_by,
    )


def _able(sim: Sim, r: int) -> Bools:
    """Alive, and large enough for the request alone."""
    request, table = sim.requests[r], sim.policy_table
    able: Bools = table.alive & (table.num_blocks >= request.prompt + request.output - 1)
    return able


def _too_late(sim: Sim, r: int) -> bool:
    """`policy.admission`: refuse at once what would miss its first token."""
    seen = forecast(sim.rules.model, sim.policy_table, _able(sim, r), _ask(sim, r))
    return refusal(seen, 0.0, np.inf, sim.rules.max_ttft_s) is not None
