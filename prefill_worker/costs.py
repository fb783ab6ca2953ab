"""What computing KV costs here, and what fetching it does; and which of the two is cheaper."""

from dataclasses import dataclass, field
from typing import Protocol

FETCH_FIXED_S = 0.01
"""Of a fetch of any size: the stream, turns of both event loops, the commit. 2 ms between two idle
instances on loopback; a network and busy loops come on top."""
FETCH_BYTES_PER_S = 200e6
"""Before any is measured: inline payloads made 0.5 GB/s on loopback, 2 cores for both ends."""
PRIOR_BYTES = 4 * 1024 * 1024
"""What that supposition weighs, in bytes measured."""
MEMORY = 0.9
"""What is left of earlier measurements after each new one: about the last ten count."""


class Costs(Protocol):
    """Expected and measured costs of KV; all on the event loop."""

    def compute_s(self, num_tokens: int) -> float:
        """To compute so many tokens of a prompt here; 0 while that is not known."""
        ...

    def fetch_s(self, num_bytes: int) -> float:
        """To fetch so many bytes of KV from another instance."""
        ...

    def computed(self, num_tokens: int, seconds: float) -> None:
        """A step took so long."""
        ...

    def fetched(self, num_bytes: int, seconds: float) -> None:
        """A fetch took so long, from its call to its commit."""
        ...

    def not_fetched(self) -> None:
        """A fetch was found too dear."""
        ...


@dataclass(slots=True)
class Rate:
    """Seconds per unit: what was measured lately, weighed by size, and what was supposed first."""

    prior_seconds: float = 0.0
    prior_units: float = 0.0
    _seconds: float = 0.0
    _units: float = 0.0

    @property
    def seconds_per_unit(self) -> float:
        """0 while nothing is known."""
        units = self._units + self.prior_units
        return (self._seconds + self.prior_seconds) / units if units else 0.0

    def add(self, units: float, seconds: float) -> None:
        """One measurement."""
        self.fade()
        self._seconds += seconds
        self._units += units

    def fade(self) -> None:
        """Count less what was measured, and so more what was supposed."""
        self._seconds *= MEMORY
        self._units *= MEMORY


@dataclass(slots=True)
class MeasuredCosts:
    """Costs of this process's own life."""

    _computing: Rate = field(default_factory=Rate)
    _fetching: Rate = field(
        default_factory=lambda: Rate(PRIOR_BYTES / FETCH_BYTES_PER_S, PRIOR_BYTES)
    )

    def compute_s(self, num_tokens: int) -> float:
        """See Costs."""
        return num_tokens * self._computing.seconds_per_unit

    def fetch_s(self, num_bytes: int) -> float:
        """See Costs."""
        return FETCH_FIXED_S + num_bytes * self._fetching.seconds_per_unit

    def computed(self, num_tokens: int, seconds: float) -> None:
        """See Costs."""
        self._computing.add(num_tokens, seconds)

    def fetched(self, num_bytes: int, seconds: float) -> None:
        """See Costs."""
        self._fetching.add(num_bytes, max(0.0, seconds - FETCH_FIXED_S))

    def not_fetched(self) -> None:
        """See Costs. What nobody measures again would be dear for ever."""
        self._fetching.fade()


def is_fetch_cheaper(costs: Costs, *, num_tokens: int, num_bytes: int) -> bool:
    """Whether to fetch the KV of `num_tokens` tokens, `num_bytes` large, instead of computing."""
    return costs.fetch_s(num_bytes) < costs.compute_s(num_tokens)
