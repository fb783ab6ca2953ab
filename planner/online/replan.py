"""The plan that suits recent requests: roles first, scale second.

Roles change within a step and nothing is loaded for it (Splitwise, ISCA '24, section 4: machines
are moved between its pools as the load asks), so they are tried first, with as many instances as
there are. Only where no division of them attains the target, with something to spare, are instances
added, as few as do; and where far fewer would do, they are taken away.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from core.plan import Plan
from planner.online.ground import PRECISION, Forecast, Ground, Sizes
from planner.online.history import History

MAX_SPLITS = 32
"""Of more instances not every division is looked at: one in 32 of them is less than 5 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Of all instances together."""

    min_instances: int = 2
    max_instances: int

    @classmethod
    def of(cls, plan: Plan) -> "Bounds":
        """As a person's plan has them: without a limit of its own the number is not to change, and
        roles alone do."""
        total = Sizes.of(plan).total
        most = plan.online.max_instances
        return cls(min_instances=min(2, total) if most else total, max_instances=max(most, total))


@dataclass(frozen=True, slots=True, kw_only=True)
class Margins:
    """Hysteresis: how much better another plan has to be."""

    gain: float = 0.1
    """Of goodput, for a change of roles: two windows of one load differ by so much in what a
    division serves of them."""
    spare: float = 0.1
    """Of the rate, that a plan must serve beside it: the next window's may be so much higher, and
    its bursts so much denser, without that anything has shifted."""
    surplus: float = 0.5
    """Of the rate, that fewer instances must still serve: more than a rate changes within a
    window that is not taken for a shift (25 %), with `spare` on top."""
    fewer: float = 0.25
    """Share of the instances that must be saved, for any to be taken away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replan:
    """What was found."""

    before: Sizes
    after: Sizes
    """The same: it is well as it is."""
    forecast_before: Forecast
    forecast_after: Forecast
    rate_per_s: float
    """That is planned for."""
    reasons: tuple[str, ...]
    """For people."""

    @property
    def is_change(self) -> bool:
        """Something has to be done."""
        return self.after != self.before


def replan(
    ground: Ground,
    history: History,
    now: Sizes,
    bounds: Bounds,
    margins: Margins | None = None,
) -> Replan:
    """Takes a few seconds: some fifty runs of the simulator, each of the same requests."""
    planning = _Planning(
        ground=ground, history=history, now=now, bounds=bounds, margins=margins or Margins()
    )
    after, why = planning.find()
    before_found, after_found = planning.forecast(now), planning.forecast(after)
    return Replan(
        before=now,
        after=after,
        forecast_before=before_found,
        forecast_after=after_found,
        rate_per_s=history.rate_per_s,
        reasons=(why, *planning.told(after)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planning:
    """One search, and what it has found so far."""

    ground: Ground
    history: History
    now: Sizes
    bounds: Bounds
    margins: Margins
    found: dict[Sizes, Forecast] = field(default_factory=dict)

    def forecast(self, sizes: Sizes) -> Forecast:
        """Once each."""
        if sizes not in self.found:
            self.found[sizes] = self.ground.forecast(sizes, self.history)
        return self.found[sizes]

    def find(self) -> tuple[Sizes, str]:
        """What suits, and why."""
        rate, now = self.history.rate_per_s, self.now
        split = self._best(now.total) or now
        if self.forecast(split).goodput_per_s < (1 + self.margins.spare) * rate:
            return self._scaled_up(split)
        if (fewer := self._far_fewer()) is not None:
            surplus = 1 + self.margins.surplus
            return fewer, f"{fewer} would do at {surplus:g} times the rate"
        gain = self._gain(split)
        if gain < self.margins.gain:
            return now, f"no other division of {now.total} instances serves {self._asked()} more"
        return split, f"{split} serve {100 * gain:.0f} % more than {now}"

    def _asked(self) -> str:
        return f"{100 * self.margins.gain:g} %"

    def _gain(self, other: Sizes) -> float:
        """Of goodput, relative; infinite where there was none."""
        before, after = self.forecast(self.now), self.forecast(other)
        if before.goodput_per_s > 0:
            return after.goodput_per_s / before.goodput_per_s - 1
        return float("inf") if after.goodput_per_s > 0 else 0.0

    def _best(self, total: int) -> Sizes | None:
        """Of all divisions, by goodput; the present one of equals."""
        top: Sizes | None = None
        for sizes in sorted(self._splits(total), key=lambda each: each != self.now):
            if top is None or self._beats(sizes, top):
                top = sizes
        return top

    def _beats(self, sizes: Sizes, top: Sizes) -> bool:
        """One run says of most that they do not."""
        most, rate = self.forecast(top), self.forecast(top).goodput_per_s
        if rate > 0 and not self._attains(sizes, rate * (1 + PRECISION)):
            return False
        other = self.forecast(sizes)
        return (other.goodput_per_s, other.attainment) > (rate, most.attainment)

    def _attains(self, sizes: Sizes, rate_per_s: float) -> bool:
        return self.ground.attains(sizes, self.history, rate_per_s)

    def _splits(self, total: int) -> list[Sizes]:
        found = splits(self.now, total, by_role=self.ground.roles_can_change)
        return [sizes for sizes in found if self.ground.has_room(sizes)]

    def _scaled_up(self, split: Sizes) -> tuple[Sizes, str]:
        """The fewest that attain with some spare; where none does, the best there can be."""
        enough = self._fewest(self.now.total, self.bounds.max_instances, self.margins.spare)
        most = enough if enough is not None else self.bounds.max_instances
        sizes = self._best(most) if most > self.now.total else split
        if sizes is None or self._gain(sizes) < self.margins.gain:
            return self.now, f"no cluster of up to {most} instances serves {self._asked()} more"
        spare = f"with {100 * self.margins.spare:g} % to spare"
        if enough is None:
            return sizes, f"not even {most} instances attain {spare}; {sizes} are the nearest"
        return sizes, f"no division of {self.now.total} instances attains {spare}; {sizes} do"

    def _far_fewer(self) -> Sizes | None:
        most = int((1 - self.margins.fewer) * self.now.total)
        total = self._fewest(self.bounds.min_instances - 1, most, self.margins.surplus)
        return None if total is None else self._best(total)

    def _fewest(self, too_few: int, most: int, spare: float) -> int | None:
        """More instances are taken to do no worse."""
        low, high = too_few, most
        if high <= low or not self._some_attains(high, spare):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            if self._some_attains(middle, spare):
                high = middle
            else:
                low = middle
        return high

    def _some_attains(self, total: int, spare: float) -> bool:
        rate = self.history.rate_per_s * (1 + spare)
        return any(self._attains(sizes, rate) for sizes in self._splits(total))

    def told(self, after: Sizes) -> Iterator[str]:
        """The forecasts of what is and of what is to be, in words."""
        for sizes in dict.fromkeys((self.now, after)):
            forecast = self.forecast(sizes)
            yield (
                f"{sizes}: {100 * forecast.attainment:.1f} % of the recent requests keep their "
                f"limits at {self.history.rate_per_s:.3g} a second; up to "
                f"{forecast.goodput_per_s:.3g} a second {100 * self.ground.target:g} % do"
            )


def splits(like: Sizes, total: int, *, by_role: bool) -> list[Sizes]:
    """Divisions of so many instances that are looked at, with as many mixed ones as now.

    `by_role`: an instance can change its role. Else pools only grow where there are more of all,
    and only shrink where there are fewer.
    """
    if like.prefill + like.decode == 0:
        return [replace(like, mixed=total)]
    num = total - like.mixed
    step = max(1, num // MAX_SPLITS)
    places = {*range(1, num, step), *range(like.prefill - 1, like.prefill + 2)}
    found = [replace(like, prefill=p, decode=num - p) for p in sorted(places) if 0 < p < num]
    if by_role:
        return found
    sign = 1 if total >= like.total else -1
    changes = ((s, s.prefill - like.prefill, s.decode - like.decode) for s in found)
    return [s for s, prefill, decode in changes if sign * prefill >= 0 and sign * decode >= 0]
