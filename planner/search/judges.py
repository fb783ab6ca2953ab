"""What a run has to keep to pass: criteria, each a share of some requests and its target.

Joint attainment by class, the papers' marginal quantiles and Splitwise's nine slowdowns are all of
this form: "P90 is within the limit" says that 90 % of the requests are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from core.slo import Slo
from planner.search.inputs import RequestClass
from planner.sim.outcome import Outcome
from planner.sim.traffic import Traffic
from policy.table import Bools

MARGINALS = ("ttft", "tpot")


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """One of those that must all hold."""

    name: str
    target: float
    """Share of the requests it is about, 0 to 1; 0: it is only watched."""


class Judge(Protocol):
    """Says of each request of a run which criteria it is about, and which it keeps."""

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """All must hold."""
        ...

    @property
    def slos(self) -> tuple[Slo, ...]:
        """By class: whoever keeps them keeps every criterion. Empty: there are no such limits."""
        ...

    def concerns(self, traffic: Traffic) -> Sequence[Bools]:
        """By criterion: which requests count."""
        ...

    def kept(self, outcome: Outcome) -> Sequence[Bools]:
        """By criterion: which requests keep it; of those that do not count, anything."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """Every class attains its own target, all limits of a request together (`core.slo`).

    Beside it, for all requests, who keeps the TTFT and who the TPOT limit of their class: nothing
    is asked of these shares, they say which phase misses.
    """

    classes: tuple[RequestClass, ...]

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """One per class, then MARGINALS."""
        own = tuple(Criterion(name=each.name, target=each.target) for each in self.classes)
        return own + tuple(Criterion(name=f"marginal {name}", target=0.0) for name in MARGINALS)

    @property
    def slos(self) -> tuple[Slo, ...]:
        """By class."""
        return tuple(each.slo for each in self.classes)

    def concerns(self, traffic: Traffic) -> Sequence[Bools]:
        """The requests of each class; all."""
        own = [traffic.request_class == number for number in range(len(self.classes))]
        return own + [np.ones(len(traffic.arrival_ps), dtype=np.bool_)] * len(MARGINALS)

    def kept(self, outcome: Outcome) -> Sequence[Bools]:
        """All limits; each of MARGINALS: without a first token it is TTFT that is missed."""
        met = [outcome.met(self.slos)] * len(self.classes)
        return [*met, within(outcome, "ttft_s", self.slos), _tpot_kept(outcome, self.slos)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Marginal:
    """TTFT and TPOT each by itself, as DistServe's published search does it: two shares of 90 % may
    be 81 % of requests that keep both. Only to compare with papers."""

    slo: Slo
    target: float = 0.9
    num_classes: int = 1
    """Of the traffic; all are judged alike."""

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """TTFT, then TPOT."""
        return tuple(Criterion(name=name, target=self.target) for name in ("ttft", "tpot"))

    @property
    def slos(self) -> tuple[Slo, ...]:
        """The same for all."""
        return (self.slo,) * self.num_classes

    def concerns(self, traffic: Traffic) -> Sequence[Bools]:
        """All requests."""
        return [np.ones(len(traffic.arrival_ps), dtype=np.bool_)] * 2

    def kept(self, outcome: Outcome) -> Sequence[Bools]:
        """Each by itself."""
        return [within(outcome, name, self.slos) for name in ("ttft_s", "tpot_s")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """A `RequestClass` of its own."""

    name: str
    slo: Slo
    target: float


def only(limit: str, classes: Sequence[RequestClass]) -> Joint:
    """The same classes judged on one limit alone, `ttft` or `tpot`: for a phase by itself."""
    limited = zip(classes, _only(limit, classes), strict=True)
    return Joint(
        classes=tuple(Promise(name=c.name, slo=slo, target=c.target) for c, slo in limited)
    )


def _only(limit: str, classes: Sequence[RequestClass]) -> tuple[Slo, ...]:
    name = f"{limit}_s"
    return tuple(Slo(**{name: getattr(each.slo, name)}) for each in classes)


def within(outcome: Outcome, name: str, slos: Sequence[Slo]) -> Bools:
    """Which requests keep one limit of their class; one that is undefined keeps any, what never
    came none but where there is no limit."""
    limits = np.array([_limit(getattr(slo, name)) for slo in slos])[outcome.traffic.request_class]
    kept: Bools = ~(getattr(outcome, name) > limits)
    return kept


def _tpot_kept(outcome: Outcome, slos: Sequence[Slo]) -> Bools:
    return within(outcome, "tpot_s", slos) | (outcome.first_token_ps < 0)


def _limit(limit_s: float | None) -> float:
    return np.inf if limit_s is None else limit_s
