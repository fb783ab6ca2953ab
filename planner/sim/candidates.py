"""Who could serve a request: counted, so that policies are asked only where there is a choice."""

from planner.sim.heap import NONE
from planner.sim.state import Sim
from policy.table import DECODE_ROLE, MIXED_ROLE, PREFILL_ROLE, Phase


def candidates(sim: Sim, r: int, phase: int) -> tuple[int, int]:
    """How many serve a phase, and the first of them; of all where none does, as in `place`."""
    request, table = sim.requests[r], sim.table
    need = request.prompt + request.output - 1
    own = PREFILL_ROLE if phase == Phase.PREFILL else DECODE_ROLE
    num_able, first_able, num, first = 0, NONE, 0, NONE
    for i in range(len(sim.lanes)):
        if not table.alive[i] or table.num_blocks[i] < need:
            continue
        num_able += 1
        first_able = i if num_able == 1 else first_able
        if table.role[i] == own or table.role[i] == MIXED_ROLE:
            num += 1
            first = i if num == 1 else first
            if num > 1:
                break  # a choice: that is all that is asked
    return (num, first) if num else (num_able, first_able)
