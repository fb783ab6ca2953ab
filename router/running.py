"""Which request ids are in use here, and which were a moment ago."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from core.clock import Clock
from core.errors import DuplicateRequest, StaleFence
from core.ids import RequestId
from core.request import Request
from router.choice import Choice

REMEMBERED_S = 60.0
"""Workers remember an ended id for a lease time, 10 s unless they are told otherwise."""
MAX_REMEMBERED = 65_536
"""At 1,000 requests a second they are all still here."""


@dataclass(slots=True, eq=False)
class Running:
    """One request under way."""

    epoch: int
    num_attempts_before: int
    """Made by an earlier request of the same id: workers drop attempts that are not above it."""
    choices: Sequence[Choice] = ()
    resumed_epoch: int | None = None
    """Of the request that took the id over, perhaps while this one waited for admission."""

    def check(self) -> None:
        """Raise StaleFence when the id is another's by now."""
        if self.resumed_epoch is not None:
            raise StaleFence(f"resumed with epoch {self.resumed_epoch}")


@dataclass(frozen=True, slots=True)
class _Ended:
    """One request that is over."""

    epoch: int
    last_attempt: int
    forgotten_at_s: float


class RunningRequests:
    """An id belongs to one request at a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._running: dict[RequestId, Running] = {}
        self._ended: OrderedDict[RequestId, _Ended] = OrderedDict()

    @contextmanager
    def hold(self, request: Request) -> Iterator[Running]:
        """Own the id; a resume with a higher epoch takes it from whoever has it.

        Raises DuplicateRequest.
        """
        key = request.request_id
        if (other := self._running.get(key)) is not None:
            self._take_from(other, request)
        ended = self._ended.get(key)
        is_same_epoch = ended is not None and ended.epoch == request.epoch
        running = Running(request.epoch, ended.last_attempt if ended and is_same_epoch else 0)
        self._running[key] = running
        try:
            yield running
        finally:
            if self._running.get(key) is running:
                del self._running[key]
                self._remember(key, running)

    def _take_from(self, other: Running, request: Request) -> None:
        if other.epoch >= request.epoch:
            raise DuplicateRequest(f"request id in use, epoch {other.epoch}")
        other.resumed_epoch = request.epoch
        for choice in other.choices:
            choice.give_up(StaleFence(f"resumed with epoch {request.epoch}"))

    def _remember(self, key: RequestId, running: Running) -> None:
        last_attempt = max((choice.last_attempt for choice in running.choices), default=0)
        now_s = self._clock.now_s()
        last_attempt = max(last_attempt, running.num_attempts_before)
        self._ended[key] = _Ended(running.epoch, last_attempt, now_s + REMEMBERED_S)
        self._ended.move_to_end(key)
        while len(self._ended) > MAX_REMEMBERED or self._oldest.forgotten_at_s <= now_s:
            self._ended.popitem(last=False)

    @property
    def _oldest(self) -> _Ended:
        return next(iter(self._ended.values()))
