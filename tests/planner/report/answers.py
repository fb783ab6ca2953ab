"""A small answer made by hand, for what shows it."""

from core.member import Role
from core.parallel import ParallelLayout
from core.slo import Slo
from planner.ask.ask import Ask, Setup, set_up
from planner.ask.gpus import GpuAsk
from planner.ask.latency import Times
from planner.ask.work import WorkAsk
from planner.search.fleet import Rules
from planner.search.intervals import Interval
from planner.search.judges import Criterion
from planner.search.question import Answer, Question
from planner.search.results import (
    Bottleneck,
    Candidate,
    Found,
    Pool,
    Quantiles,
    Ranked,
    Verdict,
)
from planner.search.steady import Judged, Judgement
from planner.sim.outcome import Outcome
from planner.sim.spec import Scheduling

GPU = "h100-80g-sxm"
SECONDS = Quantiles(p50=0.1, p90=0.2, p99=0.3)


def setup(*kinds: str, owned: str | None = None) -> Setup:
    """Llama-3.1-8B on H100 if nothing else is named, short prompts and answers."""
    work = WorkAsk(prompt_tokens="512", output_tokens="16", slo=Slo(ttft_s=0.5, tpot_s=0.05))
    ask = Ask(
        model="llama-3.1-8b",
        times=Times(),
        gpus=GpuAsk(
            kinds=kinds or ((GPU,) if owned is None else ()),
            owned=() if owned is None else (f"{owned}=8",),
            num_gpus=8,
        ),
        work=work,
        rules=Rules(placement="shortest_queue", pairs_at_arrival=True),
    )
    return set_up(ask)


def pools(prefill: int, decode: int, *, tp: int = 1) -> Candidate:
    """Two pools."""
    layout = ParallelLayout(tp=tp)
    counts = ((Role.PREFILL, prefill), (Role.DECODE, decode))
    return Candidate(
        pools=tuple(Pool(role=role, layout=layout, num=n, hardware=GPU) for role, n in counts)
    )


def mixed(num: int, scheduling: Scheduling = Scheduling.CHUNKED) -> Candidate:
    """One pool."""
    pool = Pool(
        role=Role.MIXED, layout=ParallelLayout(), num=num, hardware=GPU, scheduling=scheduling
    )
    return Candidate(pools=(pool,))


def judgement(rate_per_s: float, share: float, target: float = 0.9) -> Judgement:
    """Known to a point on either side."""
    names = {"all": target, "marginal ttft": 0.0, "marginal tpot": 0.0}
    interval = Interval(value=share, low=share - 0.01, high=min(1.0, share + 0.01))
    return Judgement(
        rate_per_s=rate_per_s,
        judged=tuple(
            Judged(criterion=Criterion(name=name, target=t), share=interval)
            for name, t in names.items()
        ),
        is_steady=True,
        is_cut=False,
        num_runs=3,
        num_requests=1000,
    )


def ranked(candidate: Candidate, goodput_per_s: float, *, share: float = 0.95) -> Ranked:
    """Attains at `goodput_per_s` if `share` says so, and not at a tenth more."""
    at = judgement(goodput_per_s, share)
    return Ranked(
        candidate=candidate,
        found=Found(judgements=(at, judgement(1.1 * goodput_per_s, 0.5))),
        verdict=Verdict(
            judgement=at,
            ttft_s=SECONDS,
            tpot_s=SECONDS,
            slo_scale=0.9 if share >= 0.9 else 1.7,
            bottleneck=Bottleneck.DECODE,
            link_load=0.02,
            num_preemptions_per_request=0.0,
            usd_per_million_output_tokens=1.5,
            average_w=500.0 * candidate.num_gpus,
            provisioned_w=700.0 * candidate.num_gpus,
        ),
        usd_per_hour=3.0 * candidate.num_gpus,
        notes=("decode 1x1: extrapolated: up to 300 answers in one step, measured to 192",),
    )


def answer(*found: Ranked, colocated: Ranked | None = None, **given: object) -> Answer:
    """Of clusters in this order."""
    fields = {"missed": (), "best_rate_per_s": 5.0, "reasons": ("because",), **given}
    return Answer(ranked=found, colocated=colocated, num_runs=9, num_requests=9000, **fields)  # type: ignore[arg-type]


def nothing(*_: object, **__: object) -> Outcome:
    """Stands in for a simulator that nobody asks."""
    raise AssertionError("nothing is simulated here")


def question(made: Setup) -> Question:
    """About `setup`: as much as eight GPUs can."""
    return Question(
        fleet=made.fleet,
        workload=made.workload,
        simulate=nothing,
        max_gpus=8,
    )
