"""A workload, a latency source and a simulator that are simple enough to reason about."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from core.member import Role
from core.parallel import ParallelLayout
from core.slo import Slo
from planner.search.fleet import Fleet, Hardware
from planner.search.judges import Promise
from planner.sim.outcome import Counters, Outcome
from planner.sim.spec import UNLIMITED, Cluster, Instance, Kind, Power
from planner.sim.traffic import Traffic, traffic
from policy.latency_source import Reach
from policy.step_times import PS_PER_S, StepTimes, decode_ps, prefill_s
from policy.table import Floats, Ints

CHAT = Promise(name="chat", slo=Slo(ttft_s=0.5, tpot_s=0.05), target=0.9)


def times(
    *, token_s: float = 1e-4, step_s: float = 0.01, answer_s: float = 1e-4, max_batch: int = 256
) -> StepTimes:
    """Prompts: so much per token. Answers: so much per step and for each of them."""
    batch = np.arange(max_batch + 1)
    base = np.rint((step_s + answer_s * batch) * PS_PER_S).astype(np.int64)
    base[0] = 0
    none = np.zeros((max_batch + 1, 1), dtype=np.int64)
    return StepTimes(
        prefill_tokens=np.array([0.0, 1000.0]),
        prefill_s=np.array([0.0, 1000.0 * token_s]),
        per_pair_s=0.0,
        num_stages=1,
        stage_s=0.0,
        first_s=0.0,
        first_per_token_s=0.0,
        decode_starts=none,
        decode_base_ps=base[:, None],
        decode_slope_ps=none,
        shared_s=0.0,
        mixed_factor=0.0,
    )


@dataclass(frozen=True, kw_only=True)
class Source:
    """tp ranks make a prompt 0.8 · tp and a step 0.5 · tp times as fast, beyond one."""

    name: str = "fake"
    num_layers: int = 4
    kv_bytes_per_token: float = 1000.0
    max_context_tokens: int = 4096
    notes: tuple[str, ...] = ()
    tps: tuple[int, ...] = (1, 2, 4)
    pps: tuple[int, ...] = (1,)
    tokens_per_gpu: int = 50_000
    token_s: float = 1e-4

    def layouts(self) -> tuple[ParallelLayout, ...]:
        return tuple(ParallelLayout(tp=tp, pp=pp) for tp in self.tps for pp in self.pps)

    def times(self, layout: ParallelLayout) -> StepTimes:
        tp = layout.tp
        made = times(
            token_s=self.token_s / (1 if tp == 1 else 0.8 * tp),
            step_s=0.01 / (1 if tp == 1 else 0.5 * tp),
        )
        return made._replace(num_stages=layout.pp)

    def capacity_tokens(self, layout: ParallelLayout) -> int:
        return self.tokens_per_gpu * layout.num_workers

    def reach(self, layout: ParallelLayout) -> Reach:
        return Reach(prompt_tokens=600)


def fleet(source: Source | None = None, **hardware: float) -> Fleet:
    """Hosts of four GPUs."""
    made = Hardware(
        name="gpu",
        source=source or Source(),
        gpus_per_host=4,
        num_hosts=int(hardware.get("num_hosts", 8)),
        price_usd_per_gpu_hour=2.0,
        power=Power(idle_w=50, prefill_w=400, decode_w=300, provisioned_w=500),
    )
    return Fleet(hardware=(made,))


@dataclass(frozen=True, kw_only=True)
class Work:
    """Poisson arrivals of prompts of 500 tokens on average, and answers of 40."""

    classes: Sequence[Promise] = (CHAT,)
    is_random: bool = True
    prompt_tokens: int = 500
    output_tokens: int = 40
    seeds: list[int] = field(default_factory=list)
    """That were asked for, in order."""

    def traffic(self, rate_per_s: float, num_requests: int, seed: int) -> Traffic:
        self.seeds.append(seed)
        random = np.random.default_rng(seed if self.is_random else 0)
        at_s = np.cumsum(random.exponential(1.0, num_requests)) / rate_per_s
        scale = random.uniform(0.5, 1.5, num_requests)
        return traffic(
            at_s,
            np.maximum(1, (self.prompt_tokens * scale).astype(np.int64)),
            np.maximum(1, (self.output_tokens * scale[::-1]).astype(np.int64)),
            request_class=random.integers(0, len(self.classes), num_requests),
        )


def simulate(
    cluster: Cluster,
    traffic: Traffic,
    *,
    slos: tuple[Slo, ...] = (),
    max_misses: int = UNLIMITED,
) -> Outcome:
    """Prompts queue first come first served, one at a time, shared out in turn; answers take what a
    step takes at the mean number of them, more and more of it where there is no such number."""
    cluster.checked()
    readers = [e for e in cluster.instances if e.role in (Role.PREFILL, Role.MIXED)]
    writers = [e for e in cluster.instances if e.role in (Role.DECODE, Role.MIXED)]
    first_ps = _first_ps(cluster, readers, traffic)
    last_ps = first_ps + _span_ps(cluster, writers, traffic)
    made = outcome(cluster, traffic, first_ps, last_ps)
    if slos and (~made.met(slos)).sum() > max_misses:
        missed_ps = np.sort(last_ps[~made.met(slos)])[max_misses]
        made = outcome(
            cluster,
            traffic,
            np.where(first_ps > missed_ps, -1, first_ps),
            np.where(last_ps > missed_ps, -1, last_ps),
        )
    return made


def _first_ps(cluster: Cluster, readers: Sequence[Instance], traffic: Traffic) -> Ints:
    free_ps = [0] * len(readers)
    first_ps = np.zeros(len(traffic.arrival_ps), dtype=np.int64)
    columns = zip(traffic.arrival_ps.tolist(), traffic.num_prompt_tokens.tolist(), strict=True)
    for r, (arrival_ps, tokens) in enumerate(columns):
        which = r % len(readers)
        steps = cluster.kinds[readers[which].kind].times
        service_ps = max(1, int(prefill_s(steps, tokens, tokens * (tokens + 1) / 2) * PS_PER_S))
        free_ps[which] = max(free_ps[which], arrival_ps) + service_ps
        first_ps[r] = free_ps[which]
    return first_ps


def _span_ps(cluster: Cluster, writers: Sequence[Instance], traffic: Traffic) -> Ints:
    gaps, steps = traffic.num_output_tokens - 1, cluster.kinds[writers[0].kind].times
    seconds = max(1, int(traffic.arrival_ps[-1])) / PS_PER_S
    tokens_per_s = float(gaps.sum()) / seconds / len(writers)
    most = steps.decode_base_ps.shape[0] - 1
    seconds_of = [decode_ps(steps, n, n * 500) / PS_PER_S for n in range(1, most + 1)]
    enough = [n for n, step_s in enumerate(seconds_of, 1) if n >= tokens_per_s * step_s]
    step_ps = np.full(len(gaps), seconds_of[(enough or [most])[0] - 1] * PS_PER_S)
    if not enough:
        step_ps *= np.linspace(1.0, 10.0, len(gaps))
    span_ps: Ints = np.rint(gaps * step_ps).astype(np.int64)
    return span_ps


def outcome(cluster: Cluster, traffic: Traffic, first_ps: Ints, last_ps: Ints) -> Outcome:
    """With these moments; -1: never."""
    num, instances = len(first_ps), len(cluster.instances)
    none = np.full(num, -1, dtype=np.int64)
    zeros = np.zeros(num, dtype=np.int64)
    return Outcome(
        traffic=traffic,
        cluster=cluster,
        first_token_ps=first_ps,
        second_token_ps=_second_ps(traffic, first_ps, last_ps),
        last_token_ps=last_ps,
        prefill_start_ps=none,
        handoff_ps=none,
        prefill_by=zeros,
        decode_by=zeros,
        num_hit_tokens=zeros,
        is_refused=np.zeros(num, dtype=np.bool_),
        end_ps=int(max(last_ps.max(), traffic.arrival_ps[-1])),
        busy_prefill_ps=np.zeros(instances, dtype=np.int64),
        busy_decode_ps=np.zeros(instances, dtype=np.int64),
        moved_bytes=np.zeros(1 + max(each.host for each in cluster.instances)),
        counters=Counters(
            num_events=0,
            num_leaps=0,
            num_leapt_steps=0,
            num_single_steps=0,
            num_preemptions=0,
            num_transfers=0,
        ),
    )


def _second_ps(traffic: Traffic, first_ps: Ints, last_ps: Ints) -> Ints:
    """A gap like the others after the first."""
    gaps = traffic.num_output_tokens - 1
    second_ps = first_ps + (last_ps - first_ps) // np.maximum(gaps, 1)
    return np.where((gaps > 0) & (last_ps >= 0), second_ps, -1)


def outcome_of(
    ttft_s: Sequence[float],
    tpot_s: Sequence[float],
    *,
    request_class: Sequence[int] | None = None,
    num_output_tokens: int = 11,
    gap_s: float = 1.0,
) -> Outcome:
    """Of requests `gap_s` apart with these latencies; infinite: no answer."""
    num = len(ttft_s)
    classes = np.zeros(num, dtype=np.int64) if request_class is None else np.array(request_class)
    made = traffic(
        np.arange(num, dtype=np.float64) * gap_s,
        np.full(num, 100),
        np.full(num, num_output_tokens),
        request_class=classes,
    )
    first_s = made.arrival_ps / PS_PER_S + np.array(ttft_s, dtype=np.float64)
    last_s = first_s + np.array(tpot_s, dtype=np.float64) * (num_output_tokens - 1)
    return outcome(one_instance(), made, _moments(first_s), _moments(last_s))


def _moments(at_s: Floats) -> Ints:
    known = np.where(np.isfinite(at_s), at_s, 0.0)
    return np.where(np.isfinite(at_s), np.rint(known * PS_PER_S), -1).astype(np.int64)


def one_instance() -> Cluster:
    """Of both phases."""
    kind = Kind(name="one", times=times())
    return Cluster(kinds=(kind,), instances=(Instance(kind=0, role=Role.MIXED),))
