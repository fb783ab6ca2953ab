"""Candidates in short."""

from core.member import Role
from core.parallel import ParallelLayout
from planner.search.results import Candidate, Pool
from planner.sim.spec import Scheduling


def pool(role: Role, num: int = 1, *, tp: int = 1, pp: int = 1, hardware: str = "gpu") -> Pool:
    layout = ParallelLayout(tp=tp, pp=pp)
    return Pool(role=role, layout=layout, num=num, hardware=hardware)


def one_pair(num_prefill: int = 1, num_decode: int = 1, *, tp: int = 1) -> Candidate:
    """Instances of one layout."""
    return Candidate(
        pools=(pool(Role.PREFILL, num_prefill, tp=tp), pool(Role.DECODE, num_decode, tp=tp))
    )


def colocated(
    num: int = 1, *, tp: int = 1, scheduling: Scheduling = Scheduling.EXCLUSIVE
) -> Candidate:
    made = Pool(
        role=Role.MIXED,
        layout=ParallelLayout(tp=tp),
        num=num,
        hardware="gpu",
        scheduling=scheduling,
    )
    return Candidate(pools=(made,))
