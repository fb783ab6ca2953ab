"""A workload: when requests come and of which classes they are, at any rate and for any seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from math import inf, isclose

import numpy as np

from core.errors import ConfigError
from core.slo import Slo
from planner.sim.traffic import MAX_REQUESTS, Traffic, traffic
from planner.workload.arrivals import Arrivals, Gaps
from planner.workload.classes import RequestClass
from planner.workload.columns import Requests, joined, picked
from planner.workload.lengths import Lengths, Stretched, resampled
from planner.workload.trace import BLOCK_TOKENS
from policy.step_times import PS_PER_S
from policy.table import Floats, Ints

MAX_SPAN_S = 2**62 / PS_PER_S
"""Half of what 64 bits of picoseconds hold, 53 days, so that the last answers end in time."""


class Stream(IntEnum):
    """Independent random numbers of one seed."""

    ARRIVALS = 0
    CLASSES = 1
    """Of which class each request is."""
    LENGTHS = 2
    """Of one class; its place follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Makes traffic that differs in nothing but the rate: one seed, one workload."""

    name: str
    arrivals: Arrivals = field(default_factory=Gaps)
    classes: tuple[RequestClass, ...]

    def traffic(self, rate_per_s: float, num_requests: int, seed: int = 0) -> Traffic:
        """At this mean rate. At another rate, and for any number of requests, the first one has
        the same class and length, and so on. Raises ConfigError with every problem."""
        if problems := (*self.problems(), *_problems_of(rate_per_s, num_requests, seed)):
            raise ConfigError(problems)
        at_s = self.arrivals.at_s(_random(seed, Stream.ARRIVALS), num_requests, rate_per_s)
        if at_s[-1] > MAX_SPAN_S:
            raise ConfigError(
                (
                    f"{num_requests} requests at {rate_per_s:g} a second take {at_s[-1]:.3g} s, "
                    f"{MAX_SPAN_S:.3g} s at most",
                )
            )
        request_class = self._classes_of(num_requests, seed)
        requests = self._requests(request_class, seed)
        shares = np.array([each.cached_share for each in self.classes])[request_class]
        return traffic(
            at_s,
            requests.num_prompt_tokens,
            requests.num_output_tokens,
            request_class=request_class,
            num_cached_tokens=_cached(requests.num_prompt_tokens, shares),
            first_block=requests.first_block,
            blocks=requests.blocks,
            block_tokens=BLOCK_TOKENS,
        )

    def _classes_of(self, num: int, seed: int) -> Ints:
        if len(self.classes) == 1:
            return np.zeros(num, dtype=np.int64)
        bounds = np.cumsum([each.share for each in self.classes[:-1]])
        return np.searchsorted(bounds, _random(seed, Stream.CLASSES).random(num), side="right")

    def _requests(self, request_class: Ints, seed: int) -> Requests:
        """Of each class its own, in the order in which the classes come."""
        if len(self.classes) == 1:
            return self.classes[0].lengths.draw(
                _random(seed, Stream.LENGTHS, 0), request_class.size
            )
        parts = list[Requests]()
        num_blocks = 0
        for place, each in enumerate(self.classes):
            num = int(np.count_nonzero(request_class == place))
            drawn = each.lengths.draw(_random(seed, Stream.LENGTHS, place), num)
            # Classes have no blocks in common. (Which numbers they have depends on `num`.)
            parts.append(drawn._replace(blocks=drawn.blocks + num_blocks))
            num_blocks += 1 + int(drawn.blocks.max(initial=-1))
        # The parts hold the requests by class, and those of one class in order.
        places = np.empty_like(request_class)
        places[np.argsort(request_class, kind="stable")] = np.arange(request_class.size)
        return picked(joined(parts), places)

    @property
    def natural_rate_per_s(self) -> float | None:
        """As its arrivals were recorded or said; None: they have no rate of their own."""
        return self.checked().arrivals.natural_rate_per_s

    @property
    def mean_prompt_tokens(self) -> float:
        """Over the mix."""
        return sum(each.share * each.lengths.mean_prompt_tokens for each in self.classes)

    @property
    def mean_output_tokens(self) -> float:
        """Over the mix."""
        return sum(each.share * each.lengths.mean_output_tokens for each in self.classes)

    @property
    def slos(self) -> tuple[Slo, ...]:
        """By class."""
        return tuple(each.slo for each in self.classes)

    @property
    def is_random(self) -> bool:
        """False: every seed gives the same traffic, and more seeds tell no more than one."""
        drawn = any(each.lengths.is_random for each in self.classes)
        return self.arrivals.is_random or drawn or len(self.classes) > 1

    def with_outputs(self, factor: float) -> "Workload":
        """The same requests with answers so many times as long."""
        return self._with_lengths(
            [Stretched(lengths=each.lengths, output_factor=factor) for each in self.classes]
        )

    def resampled(self, arrivals: Arrivals | None = None) -> "Workload":
        """Traces as what they are samples of: their requests drawn, their moments (Poisson's,
        unless others are given) too."""
        drawn = self._with_lengths([resampled(each.lengths) for each in self.classes])
        return replace(drawn, arrivals=Gaps() if arrivals is None else arrivals)

    def _with_lengths(self, lengths: Sequence[Lengths]) -> "Workload":
        pairs = zip(self.classes, lengths, strict=True)
        return replace(self, classes=tuple(replace(each, lengths=new) for each, new in pairs))

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        yield from self.arrivals.problems()
        for each in self.classes:
            yield from each.problems()
        if not isclose(total := sum(each.share for each in self.classes), 1.0, abs_tol=1e-6):
            yield f"the shares of the classes must add up to 1, got {total:g}"
        if len({each.name for each in self.classes}) < len(self.classes):
            yield "two classes have the same name"

    def checked(self) -> "Workload":
        """Itself. Raises ConfigError with every problem."""
        if problems := tuple(self.problems()):
            raise ConfigError(problems)
        return self

    def describe(self) -> str:
        """For people: a line, and one for each class."""
        natural = self.natural_rate_per_s
        rate = "" if natural is None else f", {natural:.3g} a second"
        return "\n".join(
            (
                f"{self.name}: arrivals {self.arrivals}{rate}",
                *(f"  {each}" for each in self.classes),
            )
        )


def _problems_of(rate_per_s: float, num_requests: int, seed: int) -> Iterator[str]:
    if not 0 < rate_per_s < inf:
        yield f"the rate must be above 0 and finite, got {rate_per_s:g}"
    if not 1 <= num_requests <= MAX_REQUESTS:
        yield f"a run has 1 to {MAX_REQUESTS} requests, got {num_requests}"
    if seed < 0:
        yield f"a seed must be at least 0, got {seed}"


def _random(seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence((seed, *stream)))


def _cached(num_prompt_tokens: Ints, shares: Floats) -> Ints:
    """The last token is computed in any case: its logits give the first output token."""
    cached = np.floor(num_prompt_tokens * shares).astype(np.int64)
    return np.minimum(cached, num_prompt_tokens - 1)
