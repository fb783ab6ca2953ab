"""How far instances are from the latency model: learned from what is observed there."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEAST_SHARE = 0.1
"""Of the newest observation, once there are many: the last ten or so count."""
DRIFT_SHARE = 0.1
"""Of the way back to its peers, each time that all were observed once: who was slow for a moment
gets no work to prove that it is not."""
MAX_FACTOR = 1e4
"""Either way; more is damage, or a clock that jumped."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Observed over predicted time: a geometric mean, the newest weighing most."""

    value: float = 1.0
    num_seen: int = 0

    def after(self, predicted_s: float, observed_s: float) -> "Scale":
        """With one more observation; the first one stands for itself.

        In logarithms: twice as long and half as long are equally far from the model.
        """
        if not (predicted_s > 0 and observed_s > 0 and math.isfinite(observed_s)):
            return self
        ratio = min(MAX_FACTOR, max(1 / MAX_FACTOR, observed_s / predicted_s))
        share = max(LEAST_SHARE, 1 / (self.num_seen + 1))
        return Scale(_between(self.value, ratio, share), self.num_seen + 1)


def drifted(scales: Mapping[int, Scale], share: float = DRIFT_SHARE) -> Mapping[int, Scale]:
    """Each a share of the way to the mean of those seen; whoever was never seen is there."""
    seen = [scale.value for scale in scales.values() if scale.num_seen]
    if not seen:
        return scales
    mean = geometric_mean(seen)
    return {
        row: Scale(_between(scale.value, mean, share if scale.num_seen else 1.0), scale.num_seen)
        for row, scale in scales.items()
    }


def geometric_mean(values: Sequence[float]) -> float:
    """Of at least one value above 0."""
    return math.exp(sum(map(math.log, values)) / len(values))


@dataclass(frozen=True, slots=True)
class Mean:
    """Of the last ten or so values."""

    value: float = 0.0
    num_seen: int = 0

    def after(self, value: float) -> "Mean":
        """With one more."""
        share = max(LEAST_SHARE, 1 / (self.num_seen + 1))
        return Mean(self.value + share * (value - self.value), self.num_seen + 1)


def _between(one: float, other: float, share: float) -> float:
    return math.exp((1 - share) * math.log(one) + share * math.log(other))
