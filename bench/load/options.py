"""What a command line asks for, checked as a whole before anything is sent."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path

from bench.load.endpoint import Endpoint
from bench.load.goodput import Search
from bench.load.lengths import DrawPair, from_pairs, independent, parse_lengths
from bench.load.offer import DEFAULT_MAX_IN_FLIGHT
from bench.load.parsing import parse_pair, parse_slo, problems_of
from bench.load.prompts import DEFAULT_VOCABULARY, Prompts, SharedPrefixes
from bench.load.run import Conditions
from bench.load.times import PROCESSES
from bench.load.workload import Drawn, Extent, Replayed, Source
from core.errors import ConfigError
from planner.workload.trace import read_lengths, read_trace

DEFAULT_DURATION_S = 30.0
GOODPUT_WARMUP_SHARE = 0.25
"""Of each point's duration, where none is given: a search judges steady states."""

MIN_COUNTED = 10
"""Requests expected at the lowest rate of a search: of fewer, one failure is a miss of 0.9."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent, and when."""

    rate_per_s: float | None = None
    """None: a trace's own; otherwise 1."""
    process: str = "poisson"
    burstiness: float = 1.0
    trace: Path | None = None
    speed: float = 1.0
    """Of a trace's time."""
    duration_s: float | None = None
    num_requests: int | None = None
    prompt_tokens: str = "512"
    output_tokens: str = "128"
    """Of these two the syntax is `planner.workload.distributions.SYNTAX`."""
    lengths: Path | None = None
    shared_prefix: str = ""
    """N:TOKENS."""
    vocabulary: str = f"{DEFAULT_VOCABULARY.start}:{DEFAULT_VOCABULARY.stop}"
    """LOW:HIGH, HIGH excluded."""
    seed: int = 0

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        if self.process not in PROCESSES:
            yield f"--arrivals must be one of {', '.join(PROCESSES)}, got {self.process!r}"
        positive = {
            "--rate": self.rate_per_s,
            "--burstiness": self.burstiness,
            "--speed": self.speed,
            "--duration": self.duration_s,
            "--num-requests": self.num_requests,
        }
        for option, value in positive.items():
            if value is not None and not 0 < value < inf:
                yield f"{option} must be above 0 and finite, got {value:g}"
        if self.seed < 0:
            yield f"--seed must be at least 0, got {self.seed}"
        if self.trace and self.rate_per_s:
            yield "--rate and --trace exclude each other: a trace has a rate, which --speed scales"
        for read in (self.prompts, self.draw_pair):
            yield from problems_of(read)

    def source(self) -> Source:
        """Reads the files it is made of."""
        if self.trace:
            return Replayed(rows=read_trace(self.trace))
        return Drawn(process=self.process, burstiness=self.burstiness, lengths=self.draw_pair())

    def draw_pair(self) -> DrawPair:
        """Lengths of a prompt and its answer."""
        if self.lengths:
            return from_pairs(read_lengths(self.lengths))
        return independent(
            parse_lengths("--prompt-tokens", self.prompt_tokens),
            parse_lengths("--output-tokens", self.output_tokens),
        )

    def rate_of(self, source: Source) -> float:
        """Per second: the one asked for."""
        if isinstance(source, Replayed):
            return source.rate_per_s * self.speed
        return 1.0 if self.rate_per_s is None else self.rate_per_s

    @property
    def extent(self) -> Extent:
        """A whole trace, or DEFAULT_DURATION_S, unless it is said."""
        is_open = self.trace is not None or self.num_requests is not None
        default_s = inf if is_open else DEFAULT_DURATION_S
        return Extent(
            duration_s=default_s if self.duration_s is None else self.duration_s,
            max_requests=self.num_requests,
        )

    def prompts(self, offset: int = 0) -> Prompts:
        """Those of another `offset` have nothing in common with these."""
        shared = parse_pair("--shared-prefix", self.shared_prefix) if self.shared_prefix else None
        return Prompts(
            # Far apart, so that the next seed's first search does not meet this one's second.
            seed=self.seed + (offset << 64),
            vocabulary=self._token_ids(),
            shared=shared and SharedPrefixes(num_prefixes=shared[0], num_tokens=shared[1]),
        )

    def _token_ids(self) -> range:
        token_ids = range(*parse_pair("--token-ids", self.vocabulary))
        if not token_ids:
            raise ConfigError(
                (f"--token-ids must be LOW:HIGH with LOW < HIGH, got {self.vocabulary}",)
            )
        return token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """All that `baton bench` is told."""

    endpoint: Endpoint
    load: Load = field(default_factory=Load)
    slo: str = ""
    warmup_s: float | None = None
    timeout_s: float = 600.0
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT
    finds_goodput: bool = False
    target: float = 0.9
    precision: float = 0.1
    num_gpus: int | None = None
    """Goodput is also told per GPU where their number is known."""

    def check(self) -> None:
        """Raises ConfigError with all problems."""
        if problems := (*self.endpoint.problems(), *self.load.problems(), *self._problems()):
            raise ConfigError(problems)

    def _problems(self) -> Iterator[str]:
        yield from problems_of(lambda: parse_slo(self.slo))
        if self.finds_goodput and not self.slo:
            yield "--find-goodput needs --slo: the limits that are to be attained"
        for name in ("target", "precision"):
            if not 0 < getattr(self, name) < 1:
                yield f"--{name} must be between 0 and 1, got {getattr(self, name):g}"
        if not (0 < self.timeout_s < inf and self.max_in_flight > 0):
            yield (
                f"--timeout and --max-in-flight must be above 0, got {self.timeout_s:g} "
                f"and {self.max_in_flight}"
            )
        if not 0 <= self.warmup < self.load.extent.duration_s:
            yield (
                f"--warmup must be at least 0 and below the duration of "
                f"{self.load.extent.duration_s:g} s, got {self.warmup:g}"
            )

    @property
    def warmup(self) -> float:
        """Seconds."""
        if self.warmup_s is not None:
            return self.warmup_s
        duration_s = self.load.extent.duration_s
        return (
            GOODPUT_WARMUP_SHARE * duration_s
            if self.finds_goodput and isfinite(duration_s)
            else 0.0
        )

    @property
    def conditions(self) -> Conditions:
        """Of every run."""
        return Conditions(
            timeout_s=self.timeout_s,
            max_in_flight=self.max_in_flight,
            warmup_s=self.warmup,
            limits=parse_slo(self.slo),
        )

    def search(self, first_rate_per_s: float) -> Search:
        """From the rate given on."""
        return Search(
            first_rate_per_s=first_rate_per_s,
            least_rate_per_s=MIN_COUNTED / (self.load.extent.duration_s - self.warmup),
            target=self.target,
            precision=self.precision,
        )
