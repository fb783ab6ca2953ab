"""Classes of requests: how long those of one class are, and what it is promised."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from math import inf

from core.slo import Slo
from planner.workload.lengths import Lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestClass:
    """Requests that are alike, and what they are promised."""

    name: str = "all"
    share: float = 1.0
    """Of all requests, above 0 to 1; those of a workload add up to 1."""
    lengths: Lengths
    slo: Slo = field(default_factory=Slo)
    target: float = 0.9
    """SLO attainment it needs, above 0 to 1."""
    cached_share: float = 0.0
    """Of each prompt that every instance is taken to hold already, 0 to 1, beside what blocks say;
    the last token is always computed."""

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        yield from (f"class {self.name}: {each}" for each in self._problems())

    def _problems(self) -> Iterator[str]:
        yield from self.lengths.problems()
        for name in ("share", "target"):
            if not 0 < getattr(self, name) <= 1:
                yield f"{name} must be above 0 and at most 1, got {getattr(self, name):g}"
        if not 0 <= self.cached_share <= 1:
            yield f"cached_share must be 0 to 1, got {self.cached_share:g}"
        for limit in fields(self.slo):
            value = getattr(self.slo, limit.name)
            if value is not None and not 0 < value < inf:
                yield f"slo.{limit.name} must be above 0 and finite, got {value:g}"

    def __str__(self) -> str:
        """For people."""
        lengths, cached = self.lengths, ""
        if self.cached_share:
            cached = f", {100 * self.cached_share:.3g} % of each prompt cached"
        return (
            f"class {self.name}, {100 * self.share:.3g} %: {lengths}; in the mean "
            f"{lengths.mean_prompt_tokens:,.1f} prompt and {lengths.mean_output_tokens:,.1f} "
            f"output tokens{cached}; {self._promise()}"
        )

    def _promise(self) -> str:
        values = {f.name.removesuffix("_s"): getattr(self.slo, f.name) for f in fields(self.slo)}
        limits = [f"{name} {value:g} s" for name, value in values.items() if value is not None]
        return f"{100 * self.target:.4g} % within {', '.join(limits)}" if limits else "no limits"
