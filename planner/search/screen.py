"""One instance of each layout by itself: which are worth a place in a cluster, and how many."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

from core.member import Role
from planner.search.bounds import Bounds, bounds
from planner.search.fleet import cluster_of, kind_of
from planner.search.goodput import below, find_goodput
from planner.search.judges import Joint, only
from planner.search.parallel import Workers
from planner.search.phases import decode_alone, prefill_alone
from planner.search.results import Candidate, Found, Pool
from planner.search.setting import Setting
from planner.search.trials import Trials
from planner.search.unloaded import Reach, reached
from planner.sim.spec import Cluster
from planner.sim.traffic import Traffic

PRECISION = 0.1
"""Of goodputs that only decide which clusters are looked at..."""
MAX_RUNS = 6
"""...and how many runs each of their rates is worth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Screened:
    """One instance of a layout, in its phase alone."""

    pool: Pool
    found: Found
    reaches: tuple[Reach, ...]
    """What it comes to when requests never meet."""
    bound: str
    """What its rate is bounded by, whatever the batching."""

    @property
    def goodput_per_s(self) -> float:
        """0: it keeps its limits at no rate."""
        return self.found.low_per_s

    @property
    def per_gpu(self) -> float:
        """DistServe's measure of a configuration."""
        return self.goodput_per_s / self.pool.num_gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class _Alone:
    """How an instance is tried by itself."""

    cluster: Cluster
    judge: Joint
    trials: Trials
    sample: Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Screening:
    """All instances that do the same."""

    role: Role
    found: tuple[Screened, ...]
    beaten: tuple[Pool, ...]
    """Not tried: a bound allows them no more than as many GPUs of a smaller layout attain."""


def screen(
    setting: Setting, role: Role, pools: Sequence[Pool], workers: Workers, what: str
) -> Screening:
    """Small ones first."""
    found: list[Screened] = []
    beaten: list[Pool] = []
    for _, group in groupby(sorted(pools, key=_size), key=_size):
        same = list(group)
        lost = [pool for pool in same if _is_beaten(setting, pool, found)]
        asked = [pool for pool in same if pool not in lost]
        done = len(found) + len(beaten)
        found += workers.each(what, partial(screened, setting), asked, done=done, total=len(pools))
        beaten += lost
    return Screening(role=role, found=tuple(found), beaten=tuple(beaten))


def _size(pool: Pool) -> int:
    return pool.num_gpus


def _is_beaten(setting: Setting, pool: Pool, found: Sequence[Screened]) -> bool:
    rivals = (each for each in found if each.pool.hardware == pool.hardware)
    attained = (pool.num_gpus // each.pool.num_gpus * each.goodput_per_s for each in rivals)
    return _bounds(setting, pool).most_per_s <= max(attained, default=0.0)


def _bounds(setting: Setting, pool: Pool) -> Bounds:
    alone = _alone(setting, pool)
    return bounds(alone.cluster, alone.sample, alone.judge.classes)


def screened(setting: Setting, pool: Pool) -> Screened:
    """One that misses a limit even unloaded is not tried at any rate."""
    alone = _alone(setting, pool)
    limit = _bounds(setting, pool)
    found = Found(judgements=(), most_per_s=limit.most_per_s)
    reaches = reached(setting.simulate, alone.cluster, alone.sample, alone.judge.classes)
    if all(each.is_met for each in reaches):
        search = below(limit.most_per_s, precision=max(PRECISION, setting.precision))
        found = find_goodput(_few(alone.trials), alone.cluster, search)
    return Screened(pool=pool, found=found, reaches=reaches, bound=limit.binding)


def _few(trials: Trials) -> Trials:
    sampling = trials.sampling
    return replace(trials, sampling=replace(sampling, max_runs=min(MAX_RUNS, sampling.max_runs)))


def _alone(setting: Setting, pool: Pool) -> _Alone:
    if pool.role is Role.MIXED:
        judge = Joint(classes=setting.classes)
        cluster = cluster_of(setting.fleet, Candidate(pools=(pool,)))
        trials, sample = setting.trials(judge), setting.sample
    elif pool.role is Role.PREFILL:
        judge = only("ttft", setting.classes)
        cluster = prefill_alone(kind_of(setting.fleet, pool))
        trials, sample = setting.reading(judge), setting.prompts
    else:
        judge = only("tpot", setting.classes)
        cluster = decode_alone(kind_of(setting.fleet, pool))
        trials, sample = setting.trials(judge), setting.sample
    return _Alone(cluster=cluster, judge=judge, trials=trials, sample=sample)


def best(found: Sequence[Screened]) -> Screened | None:
    """Algorithm 1's choice: most goodput per GPU; the smaller of equals. None: none attains."""
    attaining = [each for each in found if each.goodput_per_s > 0]
    return max(
        attaining,
        key=lambda each: (each.per_gpu, -each.pool.num_gpus, each.pool.hardware),
        default=None,
    )
