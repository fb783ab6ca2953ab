"""When requests come: gaps of one distribution, one after the other."""

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate, repeat, takewhile
from random import Random

Gap = Callable[[Random, float, float], float]
"""Draws seconds to the next arrival, given the rate per second and the burstiness."""


def _poisson_s(rng: Random, rate_per_s: float, _: float) -> float:
    return rng.expovariate(rate_per_s)


def _gamma_s(rng: Random, rate_per_s: float, burstiness: float) -> float:
    return rng.gammavariate(burstiness, 1 / (rate_per_s * burstiness))


def _constant_s(_rng: Random, rate_per_s: float, _burstiness: float) -> float:
    return 1 / rate_per_s


PROCESSES: Mapping[str, Gap] = {
    "poisson": _poisson_s,
    "gamma": _gamma_s,
    "constant": _constant_s,
}
"""Gaps of mean 1 / rate. Gamma's shape is the burstiness, as in vLLM's benchmark: the coefficient
of variation is 1 / sqrt(burstiness), 1 is Poisson, below 1 comes in bursts, above 1 evens out."""


def arrival_times(
    process: str, rng: Random, rate_per_s: float, burstiness: float = 1.0
) -> Iterator[float]:
    """Seconds from the start, without end."""
    draw = PROCESSES[process]
    return accumulate(draw(rng, rate_per_s, burstiness) for _ in repeat(None))


def poisson(rng: Random, rate_per_s: float, duration_s: float) -> Iterator[float]:
    """Seconds from the start, up to `duration_s`."""
    return takewhile(lambda at_s: at_s < duration_s, arrival_times("poisson", rng, rate_per_s))
