"""What becomes of a plan when the world is not as told: more load, longer answers, losses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from planner.search.bracket import Search
from planner.search.fleet import cluster_of
from planner.search.goodput import find_goodput
from planner.search.inputs import RequestClass, Workload
from planner.search.parallel import Workers
from planner.search.results import Found, Ranked
from planner.search.setting import Setting, setting
from planner.search.spare import Spare, impossible, reduced
from planner.search.steady import Judgement
from planner.search.trials import judged, whole
from planner.sim.spec import Cluster
from planner.sim.traffic import Traffic

RATE_FACTORS = (1.2, 0.8)
OUTPUT_FACTOR = 2
LINK_FACTOR = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LongerAnswers:
    """The same requests, with answers so many times as long."""

    workload: Workload
    factor: int

    @property
    def classes(self) -> Sequence[RequestClass]:
        """The workload's own."""
        return self.workload.classes

    @property
    def is_random(self) -> bool:
        """As the workload."""
        return self.workload.is_random

    def traffic(self, rate_per_s: float, num_requests: int, seed: int) -> Traffic:
        """As the workload's."""
        made = self.workload.traffic(rate_per_s, num_requests, seed)
        return made._replace(num_output_tokens=made.num_output_tokens * self.factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way in which things may differ from the plan."""

    name: str
    setting: Setting
    cluster: Cluster | None
    """None: one phase has nobody left."""
    rate_per_s: float
    goodput: Found | None = None
    """None: it has to be found; where only the rate differs it is what it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What a plan comes to in a variant."""

    name: str
    judgement: Judgement
    found: Found
    attainment_change: float
    """Of the criterion that binds, in shares: 0.05 is five points more."""
    goodput_change: float
    """As a share of the plan's; 0 where only the rate differs."""


def sensitivities(base: Setting, ranked: Ranked, workers: Workers) -> tuple[Sensitivity, ...]:
    """Rates, answers, one host, links; each beside the plan itself."""
    variants = list(_variants(base, ranked))
    return tuple(workers.each("what if", partial(_sensitivity, ranked), variants))


def _variants(base: Setting, ranked: Ranked) -> Iterator[Variant]:
    cluster, rate_per_s = cluster_of(base.fleet, ranked.candidate), ranked.verdict.rate_per_s
    plain = Variant(name="as planned", setting=base, cluster=cluster, rate_per_s=rate_per_s)
    for factor in RATE_FACTORS:
        name = f"rate {100 * (factor - 1):+.0f} %"
        changed = factor * rate_per_s
        yield replace(plain, name=name, rate_per_s=changed, goodput=ranked.found)
    longer = setting(
        base.fleet,
        LongerAnswers(workload=base.workload, factor=OUTPUT_FACTOR),
        base.simulate,
        sampling=base.sampling,
        precision=base.precision,
    )
    yield replace(plain, name=f"answers {OUTPUT_FACTOR} times as long", setting=longer)
    yield replace(plain, name="one host lost", cluster=_worst_loss(base, cluster, rate_per_s))
    yield replace(
        plain, name=f"links {LINK_FACTOR:g} times slower", cluster=_with_slow_links(cluster)
    )


def _worst_loss(base: Setting, cluster: Cluster, rate_per_s: float) -> Cluster | None:
    """Of the different hosts the one whose loss leaves least attainment."""
    left = list(reduced(cluster, Spare.HOST))
    if any(each is None for each in left):
        return None
    able = [each for each in left if each is not None]
    return min(able, key=lambda each: judged(base.joint, each, rate_per_s).worst.margin)


def _with_slow_links(cluster: Cluster) -> Cluster:
    network = cluster.network
    return replace(
        cluster,
        network=replace(
            network,
            host_bytes_per_s=network.host_bytes_per_s / LINK_FACTOR,
            local_bytes_per_s=network.local_bytes_per_s / LINK_FACTOR,
        ),
    )


def _sensitivity(ranked: Ranked, variant: Variant) -> Sensitivity:
    trials = variant.setting.joint
    if variant.cluster is None:
        judgement = impossible(trials, variant.rate_per_s)
        found = Found(judgements=(), most_per_s=0.0)
    else:
        judgement = judged(whole(trials), variant.cluster, variant.rate_per_s)
        found = _goodput(ranked, variant, variant.cluster)
    before = ranked.verdict.judgement.worst.share.value
    goodput_per_s = ranked.found.low_per_s
    return Sensitivity(
        name=variant.name,
        judgement=judgement,
        found=found,
        attainment_change=judgement.worst.share.value - before,
        goodput_change=found.low_per_s / goodput_per_s - 1 if goodput_per_s else 0.0,
    )


def _goodput(ranked: Ranked, variant: Variant, cluster: Cluster) -> Found:
    if variant.goodput is not None:
        return variant.goodput
    most_per_s = variant.setting.bounds(cluster).most_per_s
    first_per_s = ranked.found.low_per_s or ranked.verdict.rate_per_s
    search = Search(
        first_rate_per_s=min(first_per_s, most_per_s / 2),
        most_rate_per_s=most_per_s,
        precision=variant.setting.precision,
    )
    return find_goodput(variant.setting.joint, cluster, search)
