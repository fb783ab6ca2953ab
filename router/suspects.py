"""Requests that may have killed an instance, and those that did: the shell around policy.poison."""

import hashlib
import logging
import math
from array import array
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from core.clock import Clock
from core.errors import Quarantined
from core.ids import HandoffId, InstanceId, RequestId
from core.request import Request
from policy.poison import Place, Suspicion, judge

logger = logging.getLogger(__name__)

REMEMBERED_S = 600.0
MAX_REMEMBERED = 4096
"""Of each kind; the oldest go first."""
SAME_MOMENT_S = 0.05
"""One death breaks all streams to a process, but they tell one after the other."""
VERDICT_S = 1.5
"""A broken link is back, or lost, by then: see router.link."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes two requests the same to an instance; the seed is not of it: nobody repeats that,
    and few requests kill by their random numbers."""

    tenant: str
    digest: bytes


def identity_of(request: Request) -> Identity:
    """Of everything that a worker is told of a request, but for ids, seed and deadline."""
    sampling = replace(request.sampling, seed=0)
    words = (request.model, sampling, sorted(sampling.logit_bias.items()), request.stop)
    told = hashlib.blake2b(repr(words).encode(), digest_size=16)
    told.update(array("q", request.prompt_token_ids).tobytes())
    return Identity(request.tenant, told.digest())


@dataclass(frozen=True, slots=True)
class _Guilt:
    """Remembered of a request that is not served any more."""

    request_id: RequestId
    num_deaths: int
    forgotten_at_s: float


class Case:
    """One choice, as far as deaths are concerned; its owner tells where it is."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.at: frozenset[InstanceId] = frozenset()
        """Where it is placed."""
        self.in_step: dict[InstanceId, bool] = {}
        """Where a step with it may run; whether it is a prefill."""
        self.broken: dict[InstanceId, float] = {}
        """Where its stream broke in a step, and when: nobody knows yet whether that was a death."""
        self.num_tokens = 0
        self.held_since_s: float | None = None

    @cached_property
    def identity(self) -> Identity:
        """Made when somebody dies: most requests never need it."""
        return identity_of(self.request)


class Suspects:
    """One per router."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._cases: dict[HandoffId, Case] = {}
        self._suspicions: OrderedDict[Identity, tuple[float, Suspicion]] = OrderedDict()
        """With the moment at which each is forgotten."""
        self._guilty: OrderedDict[Identity, _Guilt] = OrderedDict()

    def check(self, request: Request) -> None:
        """Raise Quarantined for one that has killed before."""
        self._forget_old()
        if not self._guilty:
            return
        if (guilt := self._guilty.get(identity_of(request))) is not None:
            raise Quarantined(
                f"{guilt.num_deaths} instances died while they served this request"
                f" (first seen as {guilt.request_id}); it is not served any more"
            )

    def open(self, request: Request) -> Case:
        """A choice begins."""
        case = self._cases[request.handoff_id] = Case(request)
        return case

    def close(self, case: Case, *, completed: bool) -> None:
        """It is over; one that completed has killed nobody."""
        if self._cases.get(case.request.handoff_id) is case:
            del self._cases[case.request.handoff_id]
        if completed and self._suspicions:
            self._suspicions.pop(case.identity, None)

    def progressed(self, case: Case, num_tokens: int) -> None:
        """So many tokens are delivered."""
        case.num_tokens = num_tokens
        suspicion = self._suspicion(case)
        if suspicion is not None and suspicion.is_cleared(num_tokens):
            del self._suspicions[case.identity]

    def died(self, instance_id: InstanceId) -> None:
        """The process is gone: judge who did it."""
        there = [case for case in self._cases.values() if _was_at(case, instance_id)]
        places: dict[Identity, Place] = {}
        for case in there:
            place = Place(case.num_tokens, case.in_step.pop(instance_id, True))
            case.broken.pop(instance_id, None)
            # Choices of one request are one suspect, as far as the furthest of them.
            before = places.get(case.identity, place)
            places[case.identity] = max(before, place, key=lambda p: p.num_tokens)
        self._forget_old()
        judgement = judge(places, {key: entry[1] for key, entry in self._suspicions.items()})
        logger.info("died instance_id=%s num_in_step=%d", instance_id, len(places))
        if judgement.guilty is not None:
            case = next(case for case in there if case.identity == judgement.guilty)
            self._convict(case)
        self._suspect(judgement.suspects)

    def spared(self, instance_id: InstanceId) -> None:
        """What looked like a death was none."""
        for case in self._cases.values():
            case.broken.pop(instance_id, None)

    def is_undecided(self, case: Case, heard_at_s: Mapping[InstanceId, float]) -> bool:
        """Whether a stream of it broke and nobody knows yet whether the instance has died."""
        now_s = self._clock.now_s()
        for name, broke_at_s in list(case.broken.items()):
            # Whoever is heard after it lives; what was on its way then comes at once.
            is_heard = heard_at_s.get(name, -math.inf) >= broke_at_s + SAME_MOMENT_S
            if is_heard or now_s - broke_at_s >= VERDICT_S:
                del case.broken[name]
        return bool(case.broken)

    def broke(self, case: Case, instance_id: InstanceId) -> None:
        """Its stream to an instance broke in the middle of a step."""
        case.broken[instance_id] = self._clock.now_s()

    def apart_from(self, case: Case) -> frozenset[InstanceId]:
        """Where other suspects are, if this is a suspect that should not meet them."""
        suspicion = self._suspicion(case)
        if suspicion is None:
            case.held_since_s = None
            return frozenset()
        now_s = self._clock.now_s()
        if case.held_since_s is None:
            case.held_since_s = now_s
        if now_s - case.held_since_s >= suspicion.alone_s:
            return frozenset()
        others = (c for c in self._cases.values() if c.at and c is not case)
        found = [c.at for c in others if c.identity != case.identity and self._suspicion(c)]
        return frozenset().union(*found)

    def _suspicion(self, case: Case) -> Suspicion | None:
        if not self._suspicions:
            return None
        entry = self._suspicions.get(case.identity)
        return None if entry is None else entry[1]

    def _convict(self, case: Case) -> None:
        _, suspicion = self._suspicions.pop(case.identity)
        num_deaths = suspicion.num_deaths + 1
        logger.warning(
            "quarantined request_id=%s num_deaths=%d", case.request.request_id, num_deaths
        )
        until_s = self._clock.now_s() + REMEMBERED_S
        self._guilty[case.identity] = _Guilt(case.request.request_id, num_deaths, until_s)

    def _suspect(self, suspects: Mapping[Identity, Suspicion]) -> None:
        until_s = self._clock.now_s() + REMEMBERED_S
        for key, suspicion in suspects.items():
            self._suspicions[key] = (until_s, suspicion)
            self._suspicions.move_to_end(key)
        for case in self._cases.values():
            if suspects and case.identity in suspects:
                case.held_since_s = None

    def _forget_old(self) -> None:
        now_s = self._clock.now_s()
        while self._guilty and (
            len(self._guilty) > MAX_REMEMBERED
            or next(iter(self._guilty.values())).forgotten_at_s <= now_s
        ):
            self._guilty.popitem(last=False)
        while self._suspicions and (
            len(self._suspicions) > MAX_REMEMBERED
            or next(iter(self._suspicions.values()))[0] <= now_s
        ):
            self._suspicions.popitem(last=False)


def _was_at(case: Case, instance_id: InstanceId) -> bool:
    return instance_id in case.in_step or instance_id in case.broken
