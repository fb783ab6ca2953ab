"""What a load came to: latencies, attainment, throughput, and what to know first."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.load.backlog import Trend, trend
from bench.load.outcome import Outcome
from bench.load.spread import Spread, spread
from core import slo
from planner.search.intervals import Share, share

MAX_CPU_SHARE = 0.7
"""Of one core, which is all that an event loop has: above this the generator's own queueing shows
in what it measures."""
MAX_LATE_SHARE = 0.05
"""Of the median TTFT: lateness is part of every latency."""
MIN_REQUESTS = 100
"""Below this a p99 is the maximum."""

LATENCIES = {
    "ttft": slo.ttft_s,
    "first_gap": slo.first_gap_s,
    "tpot": slo.tpot_s,
    "e2e": slo.e2e_s,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The part of a load that counts: from the end of the warm-up to the last arrival."""

    from_s: float
    to_s: float

    @property
    def duration_s(self) -> float:
        """Seconds."""
        return self.to_s - self.from_s

    def holds(self, at_s: float) -> bool:
        """Both ends included."""
        return self.from_s <= at_s <= self.to_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """Requests without an answer, of one kind."""

    reason: str
    count: int
    example: str
    """What the first of them was told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Per second of the window, in which everything that happened counts, whenever it arrived."""

    arrived_per_s: float
    answered_per_s: float
    output_tokens_per_s: float
    prompt_tokens_per_s: float
    """Of the requests that were answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """What the load generator itself took, all of its threads together."""

    cpu_s: float
    wall_s: float

    @property
    def share(self) -> float:
        """Of one core; with threads it may be above 1."""
        return self.cpu_s / self.wall_s if self.wall_s else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Of the requests that arrived within the window."""

    window: Window
    num_arrived: int
    num_answered: int
    failures: Sequence[Failures]
    """Most frequent first."""
    latencies_s: Mapping[str, Spread | None]
    """By the names of LATENCIES, of whole answers; and itl, of each pause. None: no such value."""
    late_s: Spread | None
    """How long after it was due each was sent."""
    attainment: Share | None
    """None without an SLO."""
    throughput: Throughput
    trend: Trend
    cpu: Cpu
    notes: Sequence[str]
    """What a reader should know before believing the rest."""


def measure(
    outcomes: Sequence[Outcome], *, window: Window, limits: slo.Slo | None, cpu: Cpu
) -> Measures:
    """Over the whole load's outcomes, warm-up included."""
    counted = [o for o in outcomes if window.holds(o.at_s)]
    latencies_s, late_s = latencies(counted), spread(o.late_s for o in counted)
    answered = [o for o in counted if not o.error]
    return Measures(
        window=window,
        num_arrived=len(counted),
        num_answered=len(answered),
        failures=_failures(counted),
        latencies_s=latencies_s,
        late_s=late_s,
        attainment=None if limits is None else attained(counted, limits),
        throughput=_throughput(outcomes, window),
        trend=trend(outcomes, window.from_s, window.to_s),
        cpu=cpu,
        notes=(*_notes_on_answers(answered), *_notes_on_us(latencies_s["ttft"], late_s, cpu)),
    )


def latencies(outcomes: Iterable[Outcome]) -> dict[str, Spread | None]:
    """Of whole answers; a one-token answer has a TTFT and an e2e alone."""
    whole = [(o, moments) for o in outcomes if (moments := o.answered) is not None]
    found = {
        name: spread(value for _, moments in whole if (value := latency(moments)) is not None)
        for name, latency in LATENCIES.items()
    }
    return found | {"itl": spread(pause for o, _ in whole for pause in o.answer.pauses_s())}


def attained(outcomes: Sequence[Outcome], limits: slo.Slo) -> Share:
    """Joint, of all that arrived: what has no whole answer misses."""
    whole = (moments for o in outcomes if (moments := o.answered) is not None)
    return share(sum(slo.meets(limits, moments) for moments in whole), len(outcomes))


def _failures(outcomes: Sequence[Outcome]) -> tuple[Failures, ...]:
    failed = [o for o in outcomes if o.error]
    examples = {o.error: o.detail for o in reversed(failed)}
    return tuple(
        Failures(reason=reason, count=count, example=examples[reason])
        for reason, count in Counter(o.error for o in failed).most_common()
    )


def _throughput(outcomes: Sequence[Outcome], window: Window) -> Throughput:
    ended = [o for o in outcomes if not o.error and window.holds(o.ended_at_s)]
    num_output_tokens = sum(
        size
        for o in outcomes
        for at_s, size in zip(o.answer.times_s, o.answer.sizes, strict=True)
        if window.holds(at_s)
    )
    # A window of one moment, which a load of one request has, has no rates.
    per_s = 1 / window.duration_s if window.duration_s > 0 else 0.0
    return Throughput(
        arrived_per_s=per_s * sum(window.holds(o.at_s) for o in outcomes),
        answered_per_s=per_s * len(ended),
        output_tokens_per_s=per_s * num_output_tokens,
        prompt_tokens_per_s=per_s * sum(o.num_prompt_tokens for o in ended),
    )


def _notes_on_answers(answered: Sequence[Outcome]) -> Iterator[str]:
    if len(answered) < MIN_REQUESTS:
        yield f"{len(answered)} answers: too few for a p99, which needs {MIN_REQUESTS}"
    num_assumed = sum(not o.answer.is_told for o in answered)
    if num_assumed:
        yield (
            f"{num_assumed} answers came without a token count per chunk: each chunk counts as one "
            "token, unless the answer's own total says otherwise"
        )
    num_merged = sum(max(o.answer.sizes, default=0) > 1 for o in answered)
    if num_merged:
        yield f"{num_merged} answers had chunks of several tokens: ITL is per chunk, TPOT per token"
    num_short = sum(o.answer.num_output_tokens < o.max_tokens for o in answered)
    if num_short:
        yield f"{num_short} answers were shorter than asked for"


def _notes_on_us(ttft_s: Spread | None, late_s: Spread | None, cpu: Cpu) -> Iterator[str]:
    if cpu.share > MAX_CPU_SHARE:
        yield (
            f"the load generator used {cpu.share:.0%} of a core, above {MAX_CPU_SHARE:.0%}: "
            "its own delays are in these figures; split the load over several generators"
        )
    if ttft_s and late_s and late_s.p99 > MAX_LATE_SHARE * ttft_s.p50:
        yield (
            f"1 % of the requests were sent {late_s.p99 * 1e3:.1f} ms late or more, above "
            f"{MAX_LATE_SHARE:.0%} of the median TTFT: latencies count from when they were due"
        )
