"""Distributions of a number of tokens: given, drawn, or those of a file."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from core.errors import ConfigError
from planner.workload.columns import MAX_TOKENS
from policy.table import Ints

MAX_SIGMA = 20.0
"""Of a lognormal: its exponentials stay finite, and nothing real comes near."""
SYNTAX = "N, LOW:HIGH (uniform), or lognormal:MEDIAN:SIGMA[:MAX]"


class Distribution(Protocol):
    """Of numbers of at least 1."""

    @property
    def mean(self) -> float:
        """Tokens."""
        ...

    def draw(self, rng: np.random.Generator, num: int) -> Ints:
        """So many; the first of more are those of fewer."""
        ...

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """Always the same."""

    num_tokens: int

    @property
    def mean(self) -> float:
        """Tokens."""
        return float(self.num_tokens)

    def draw(self, rng: np.random.Generator, num: int) -> Ints:
        """The generator is not asked."""
        return np.full(num, self.num_tokens, dtype=np.int64)

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        if not 1 <= self.num_tokens <= MAX_TOKENS:
            yield f"lengths must be 1 to {MAX_TOKENS} tokens, got {self.num_tokens}"

    def __str__(self) -> str:
        """As SYNTAX has it."""
        return f"{self.num_tokens}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """Each number from the lowest to the highest, both included, as likely as any other."""

    low: int
    high: int

    @property
    def mean(self) -> float:
        """Tokens."""
        return (self.low + self.high) / 2

    def draw(self, rng: np.random.Generator, num: int) -> Ints:
        """So many."""
        return rng.integers(self.low, self.high, size=num, endpoint=True)

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        if not 1 <= self.low <= self.high <= MAX_TOKENS:
            yield (
                f"uniform lengths must be LOW:HIGH with 1 ≤ LOW ≤ HIGH ≤ {MAX_TOKENS} tokens, "
                f"got {self.low}:{self.high}"
            )

    def __str__(self) -> str:
        """As SYNTAX has it."""
        return f"{self.low}:{self.high}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lognormal:
    """Whose logarithm is normal; what lies above `most` or below 1 is moved there."""

    median: float
    sigma: float
    """Standard deviation of the natural logarithm."""
    most: float = math.inf

    @property
    def mean(self) -> float:
        """Tokens, but for rounding to whole ones."""
        low, high = 1.0, min(self.most, MAX_TOKENS)
        if not self.sigma:
            return self.median
        # What lies between adds to the mean as much as a lognormal has there whose median is
        # exp(sigma²) times this one's: sigma less in standard deviations.
        whole = self.median * math.exp(self.sigma**2 / 2)
        from_z, to_z = self._z_of(low), self._z_of(high)
        between = _share_below(to_z - self.sigma) - _share_below(from_z - self.sigma)
        return low * _share_below(from_z) + whole * between + high * _share_below(-to_z)

    def _z_of(self, num_tokens: float) -> float:
        return math.log(num_tokens / self.median) / self.sigma

    def draw(self, rng: np.random.Generator, num: int) -> Ints:
        """So many."""
        drawn = self.median * np.exp(self.sigma * rng.standard_normal(num))
        whole: Ints = np.rint(np.clip(drawn, 1, min(self.most, MAX_TOKENS))).astype(np.int64)
        return whole

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        if not (1 <= self.median <= min(self.most, MAX_TOKENS) and 0 <= self.sigma <= MAX_SIGMA):
            yield (
                f"lognormal lengths must be MEDIAN:SIGMA[:MAX] with 1 ≤ MEDIAN ≤ MAX and SIGMA at "
                f"most {MAX_SIGMA:g}, got "
                f"{self.median:g}:{self.sigma:g}:{self.most:g}"
            )

    def __str__(self) -> str:
        """As SYNTAX has it."""
        most = "" if math.isinf(self.most) else f":{self.most:g}"
        return f"lognormal:{self.median:g}:{self.sigma:g}{most}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sampled:
    """Any of these, each as likely, again and again."""

    values: Ints

    @property
    def mean(self) -> float:
        """Tokens."""
        return float(self.values.mean())

    def draw(self, rng: np.random.Generator, num: int) -> Ints:
        """So many."""
        drawn: Ints = self.values[rng.integers(len(self.values), size=num)]
        return drawn

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        if not len(self.values) or self.values.min() < 1:
            yield "lengths to draw from must be some, of at least 1 token"

    def __str__(self) -> str:
        """For people."""
        return f"of {len(self.values):,} lengths"


def _share_below(z: float) -> float:
    """Of a normal distribution; by erfc, which is exact far below the mean too."""
    return 0.5 * math.erfc(-z / math.sqrt(2))


def parse_lengths(option: str, text: str) -> Fixed | Uniform | Lognormal:
    """What a command line says. Raises ConfigError, which names the `option`."""
    try:
        lengths = _parsed(text)
    except ValueError:
        lengths = None
    if lengths is None or any(lengths.problems()):
        raise ConfigError((f"{option} must be {SYNTAX}, of at least 1 token; got {text!r}",))
    return lengths


def _parsed(text: str) -> Fixed | Uniform | Lognormal | None:
    match text.split(":"):
        case [num]:
            return Fixed(num_tokens=int(num))
        case ["lognormal", median, sigma]:
            return Lognormal(median=float(median), sigma=float(sigma))
        case ["lognormal", median, sigma, most]:
            return Lognormal(median=float(median), sigma=float(sigma), most=float(most))
        case [low, high]:
            return Uniform(low=int(low), high=int(high))
    return None
