"""When requests come, at any mean rate: drawn, by rates that change, or as recorded."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import Protocol

import numpy as np

from core.errors import ConfigError
from planner.workload.columns import Trace
from policy.table import Floats

SYNTAX = "poisson, constant, gamma:SHAPE, or SECONDS:RATE,SECONDS:RATE,…[,hold]"


class Arrivals(Protocol):
    """Moments that differ in nothing but the rate: at twice the rate every gap is half as long
    (or, where rates change in time, holds as many requests as that)."""

    @property
    def natural_rate_per_s(self) -> float | None:
        """As it was recorded or said; None: it has none of its own."""
        ...

    @property
    def is_random(self) -> bool:
        """False: every seed gives the same moments, and more seeds tell no more than one."""
        ...

    def at_s(self, rng: np.random.Generator, num: int, rate_per_s: float) -> Floats:
        """Sorted, from the start; the first of more moments are those of fewer."""
        ...

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        ...


_GAPS: Mapping[str, Callable[[np.random.Generator, float, int], Floats]] = {
    "poisson": lambda rng, _, num: rng.standard_exponential(num),
    "gamma": lambda rng, shape, num: rng.standard_gamma(shape, num) / shape,
    "constant": lambda _rng, _shape, num: np.ones(num),
}
"""Of mean 1."""
PROCESSES = tuple(_GAPS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaps:
    """Gaps of one distribution, one after the other, the first one before the first request."""

    process: str = "poisson"
    """One of PROCESSES."""
    burstiness: float = 1.0
    """Gamma's shape, as in `baton bench`: the coefficient of variation is 1 / sqrt(burstiness),
    1 is Poisson, below 1 comes in bursts, above 1 evens out."""

    @property
    def natural_rate_per_s(self) -> float | None:
        """None."""
        return None

    @property
    def is_random(self) -> bool:
        """Constant gaps are not."""
        return self.process != "constant"

    def at_s(self, rng: np.random.Generator, num: int, rate_per_s: float) -> Floats:
        """Sorted, from the start."""
        return np.cumsum(_GAPS[self.process](rng, self.burstiness, num)) / rate_per_s

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        if self.process not in PROCESSES:
            yield f"arrivals must be of {', '.join(PROCESSES)}, got {self.process!r}"
        if not 0 < self.burstiness < inf:
            yield f"burstiness must be above 0 and finite, got {self.burstiness:g}"

    def __str__(self) -> str:
        """As SYNTAX has it."""
        return f"gamma:{self.burstiness:g}" if self.process == "gamma" else self.process


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A time of one rate."""

    duration_s: float
    rate_per_s: float
    """At least 0."""


class Then(StrEnum):
    """What comes after the last piece."""

    AGAIN = "again"
    """The first one, and so on without end."""
    HOLD = "hold"
    """Its rate goes on without end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """Rates that change. Asked for another mean rate, times stay and all rates are scaled."""

    pieces: tuple[Piece, ...]
    then: Then = Then.AGAIN
    gaps: Gaps = field(default_factory=Gaps)
    """What arrivals would be at an even rate: so many requests are between two of them."""

    @property
    def natural_rate_per_s(self) -> float | None:
        """Mean over one round of the pieces."""
        return self._mean_per_s

    @property
    def _mean_per_s(self) -> float:
        num = sum(each.duration_s * each.rate_per_s for each in self.pieces)
        return num / sum(each.duration_s for each in self.pieces)

    @property
    def is_random(self) -> bool:
        """As its gaps."""
        return self.gaps.is_random

    def at_s(self, rng: np.random.Generator, num: int, rate_per_s: float) -> Floats:
        """Sorted, from the start."""
        speed = rate_per_s / self._mean_per_s
        rates = np.array([each.rate_per_s * speed for each in self.pieces])
        ends_s = np.cumsum([0.0, *(each.duration_s for each in self.pieces)])
        # Moments at a rate of one are numbers of requests expected until then; each is moved to
        # when as many are expected here.
        expected = np.concatenate(([0.0], np.cumsum(rates * np.diff(ends_s))))
        wanted = self.gaps.at_s(rng, num, 1.0)
        if self.then is Then.HOLD:
            beyond = np.maximum(wanted - expected[-1], 0.0) / rates[-1]
            held_s: Floats = np.interp(wanted, expected, ends_s) + beyond
            return held_s
        rounds = np.floor(wanted / expected[-1])
        within: Floats = np.interp(wanted - rounds * expected[-1], expected, ends_s)
        at_s: Floats = rounds * ends_s[-1] + within
        return at_s

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        yield from self.gaps.problems()
        if not any(each.rate_per_s for each in self.pieces):
            yield "arrivals need a rate above 0 at some time"
        for each in self.pieces:
            if not (0 < each.duration_s < inf and 0 <= each.rate_per_s < inf):
                yield (
                    "arrivals need durations above 0 and rates of at least 0, got "
                    f"{each.duration_s:g}:{each.rate_per_s:g}"
                )
        if self.then is Then.HOLD and self.pieces and not self.pieces[-1].rate_per_s:
            yield "arrivals end with a rate of 0, which cannot be held"

    def __str__(self) -> str:
        """As SYNTAX has it, but for gaps that are not Poisson's."""
        pieces = [f"{each.duration_s:g}:{each.rate_per_s:g}" for each in self.pieces]
        return ",".join([*pieces, *(["hold"] if self.then is Then.HOLD else [])])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replay:
    """A trace's moments, its time scaled. After its last request it begins anew: the first one
    comes again one mean gap later, so that the mean rate stays what it was."""

    trace: Trace

    @property
    def natural_rate_per_s(self) -> float | None:
        """As recorded."""
        return self.trace.rate_per_s

    @property
    def is_random(self) -> bool:
        """Never."""
        return False

    def at_s(self, rng: np.random.Generator, num: int, rate_per_s: float) -> Floats:
        """Sorted, the first at 0; the generator is not asked."""
        recorded_s, rate = self.trace.at_s, self.trace.rate_per_s
        rounds, rows = np.divmod(np.arange(num), len(recorded_s))
        round_s = len(recorded_s) / rate
        at_s: Floats = (rounds * round_s + recorded_s[rows]) * (rate / rate_per_s)
        return at_s

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        if not self.trace.at_s[-1]:
            yield "arrivals of a trace need requests at two moments at least"

    def __str__(self) -> str:
        """For people."""
        return f"a trace of {len(self.trace.at_s):,} requests over {self.trace.at_s[-1]:,.0f} s"


def parse_arrivals(option: str, text: str) -> Gaps | Pieces:
    """What a command line says. Raises ConfigError, which names the `option`."""
    try:
        arrivals = _parsed(text)
    except ValueError:
        raise ConfigError((f"{option} must be {SYNTAX}; got {text!r}",)) from None
    if problems := tuple(f"{option}: {each}" for each in arrivals.problems()):
        raise ConfigError(problems)
    return arrivals


def _parsed(text: str) -> Gaps | Pieces:
    match text.split(":"):
        case ["poisson" | "constant"]:
            return Gaps(process=text)
        case ["gamma", shape]:
            return Gaps(process="gamma", burstiness=float(shape))
    parts = text.removesuffix(",hold").split(",")
    pieces = [tuple(map(float, part.split(":"))) for part in parts]
    return Pieces(
        pieces=tuple(Piece(duration_s=duration, rate_per_s=rate) for duration, rate in pieces),
        then=Then.HOLD if text.endswith(",hold") else Then.AGAIN,
    )
