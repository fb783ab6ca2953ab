"""Whose turn it is: priority with ageing, then the tenant served least, then who came first."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

PROMPT_TOKEN_COST = 1.0
OUTPUT_TOKEN_COST = 2.0
"""Against a prompt token, as in Sheng et al. (OSDI '24), section 5: an output token takes a step of
its own, and its KV stays as long."""

MAX_ABSENT = 4096
"""Tenants whose debt is remembered while they have no work; beyond, all of it is forgiven."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What somebody who waits can say for himself."""

    tenant: str
    priority: int
    """Higher goes first."""
    arrived_at_s: float


class ServedTokens:
    """Virtual token counters: Algorithm 2 of Sheng et al., "Fairness in Serving Large Language
    Models" (OSDI '24).

    Whoever was away begins with what the least served of those here has, so that nobody saves up
    for a burst. While tenants have work all the time their counters differ by a bounded amount.
    """

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._num_here: Counter[str] = Counter()
        self._last_left = 0.0
        """Counter of the tenant that left last: where everybody begins when nobody is here."""

    def join(self, tenant: str) -> None:
        """One more item of this tenant has work."""
        if not self._num_here[tenant]:
            start = min((self._served[name] for name in +self._num_here), default=self._last_left)
            self._served[tenant] = max(self._served.get(tenant, start), start)
        self._num_here[tenant] += 1

    def leave(self, tenant: str) -> None:
        """One item of it has none any more."""
        self._num_here[tenant] -= 1
        if not self._num_here[tenant]:
            del self._num_here[tenant]
            self._last_left = self._served[tenant]
            self._forget()

    def charge(self, tenant: str, cost: float) -> None:
        """It was served; nothing happens when it has left meanwhile."""
        if tenant in self._served:
            self._served[tenant] += cost

    def served(self, tenant: str) -> float:
        """Its counter."""
        return self._served.get(tenant, 0.0)

    def _forget(self) -> None:
        """Who is away and has no more than the least served would be lifted to it anyway."""
        if len(self._served) - len(self._num_here) > MAX_ABSENT:
            self._served = {name: self._served[name] for name in self._num_here}
            return
        start = min((self._served[name] for name in self._num_here), default=self._last_left)
        for name in [n for n, cost in self._served.items() if cost <= start]:
            if name not in self._num_here:
                del self._served[name]


class FairQueue(Generic[T]):
    """Items that wait, by turn. Adding, removing and each turn cost O(tenants × priorities)."""

    def __init__(self, *, ageing_s: float, served: ServedTokens) -> None:
        """`ageing_s` of waiting count as one step of priority, up to the highest that waits."""
        self._ageing_s = ageing_s
        self._served = served
        self._claims: dict[T, Claim] = {}
        # Of one tenant and priority the order is that of arrival: a dict keeps it.
        self._lines: dict[tuple[str, int], dict[T, None]] = {}

    def __len__(self) -> int:
        return len(self._claims)

    def __contains__(self, item: object) -> bool:
        return item in self._claims

    def __iter__(self) -> Iterator[T]:
        """In order of arrival here."""
        return iter(self._claims)

    def add(self, item: T, claim: Claim) -> None:
        """Wait."""
        self._claims[item] = claim
        self._lines.setdefault((claim.tenant, claim.priority), {})[item] = None

    def remove(self, item: T) -> bool:
        """No longer wait; False when it did not."""
        claim = self._claims.pop(item, None)
        if claim is None:
            return False
        line = self._lines[claim.tenant, claim.priority]
        del line[item]
        if not line:
            del self._lines[claim.tenant, claim.priority]
        return True

    def in_turn(self, now_s: float) -> Iterator[T]:
        """Everybody, next first. What is removed or charged between two turns counts at once;
        an item that stays is passed over."""
        passed: set[T] = set()
        while (item := self._next(now_s, passed)) is not None:
            passed.add(item)
            yield item

    def _next(self, now_s: float, passed: set[T]) -> T | None:
        heads = [
            head
            for line in self._lines.values()
            if (head := next((item for item in line if item not in passed), None)) is not None
        ]
        if not heads:
            return None
        highest = max(self._claims[head].priority for head in heads)
        return min(heads, key=lambda head: self._turn(self._claims[head], now_s, highest))

    def _turn(self, claim: Claim, now_s: float, highest: int) -> tuple[float, float, float]:
        # Not above the highest: among equals the tenant with the longest line would wait longest,
        # and so win by ageing what it lost by fairness.
        num_steps = max(0.0, now_s - claim.arrived_at_s) // self._ageing_s
        level = min(claim.priority + num_steps, highest)
        return -level, self._served.served(claim.tenant), claim.arrived_at_s
