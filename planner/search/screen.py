"""One instance of each layout by itself: which are worth a place in a cluster, and how many."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from core.member import Role
from planner.search.bounds import bounds
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
"""Of goodputs that only decide which clusters are looked at."""


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


def screen(
    setting: Setting, pools: Sequence[Pool], workers: Workers, what: str
) -> tuple[Screened, ...]:
    """All of them, in order."""
    return tuple(workers.each(what, partial(screened, setting), pools))


def screened(setting: Setting, pool: Pool) -> Screened:
    """One that misses a limit even unloaded is not tried at any rate."""
    alone = _alone(setting, pool)
    classes = alone.judge.classes
    limit = bounds(alone.cluster, alone.sample, classes)
    found = Found(judgements=(), most_per_s=limit.most_per_s)
    reaches = reached(setting.simulate, alone.cluster, alone.sample, classes)
    if all(each.is_met for each in reaches):
        search = below(limit.most_per_s, precision=max(PRECISION, setting.precision))
        found = find_goodput(alone.trials, alone.cluster, search)
    return Screened(pool=pool, found=found, reaches=reaches, bound=limit.binding)


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
