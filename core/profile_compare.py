"""Whether two profiles of one machine agree, within the intervals they state."""

from collections.abc import Iterator
from dataclasses import dataclass

from core.errors import Incompatible
from core.profile import Profile, Saturation, StepShape

MIN_AGREEING = 0.9
"""Share of points: what the stated interval promises."""
MAX_INTERVAL = 0.25
"""A wider promise promises nothing: points are held to this then."""

Key = tuple[str, str, StepShape]
"""Layout, condition, step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One step in both profiles."""

    layout: str
    condition: str
    shape: StepShape
    times_s: tuple[float, float]
    interval: float
    """The wider of the two stated ones, MAX_INTERVAL at most."""

    @property
    def relative(self) -> float:
        """Difference over the mean."""
        first_s, second_s = self.times_s
        return abs(first_s - second_s) / ((first_s + second_s) / 2)

    @property
    def agrees(self) -> bool:
        """It is within the interval."""
        return self.relative <= self.interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What a comparison found."""

    differences: tuple[Difference, ...]
    """Of every step in both, the largest first."""
    l_m_tokens: tuple[int, int]
    l_m_agrees: bool
    """The two ranges of L_m overlap."""

    @property
    def num_agreeing(self) -> int:
        """Steps within the interval."""
        return sum(difference.agrees for difference in self.differences)

    @property
    def share(self) -> float:
        """0-1, of the steps in both; 0 when there is none."""
        return self.num_agreeing / len(self.differences) if self.differences else 0.0

    @property
    def holds(self) -> bool:
        """Enough steps agree, and so does L_m."""
        return self.share >= MIN_AGREEING and self.l_m_agrees


def compare(first: Profile, second: Profile) -> Agreement:
    """Raises Incompatible for profiles of unlike models or machines."""
    if first.subject != second.subject:
        raise Incompatible(f"unlike profiles: {first.subject} and {second.subject}")
    mine, other = dict(_points(first)), dict(_points(second))
    differences = [_difference(key, mine[key], other[key]) for key in mine if key in other]
    saturations = first.layouts[0].saturation, second.layouts[0].saturation
    return Agreement(
        differences=tuple(sorted(differences, key=lambda d: -d.relative)),
        l_m_tokens=(first.l_m_tokens, second.l_m_tokens),
        l_m_agrees=_overlap(*saturations),
    )


def _points(profile: Profile) -> Iterator[tuple[Key, tuple[float, float]]]:
    """Time and interval by step."""
    for layout in profile.layouts:
        for condition in layout.conditions:
            for point in condition.points:
                key = f"{layout.tp}x{layout.pp}", condition.name, point.shape
                yield key, (point.time_s, condition.interval)


def _difference(key: Key, mine: tuple[float, float], other: tuple[float, float]) -> Difference:
    layout, condition, shape = key
    return Difference(
        layout=layout,
        condition=condition,
        shape=shape,
        times_s=(mine[0], other[0]),
        interval=min(max(mine[1], other[1]), MAX_INTERVAL),
    )


def _overlap(first: Saturation, second: Saturation) -> bool:
    return first.low_tokens <= second.high_tokens and second.low_tokens <= first.high_tokens
