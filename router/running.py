"""Which request ids are in use here, and which were a moment ago."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from core.errors import DuplicateRequest, StaleFence
from core.ids import RequestId
from core.request import Request
from router.choice import Choice

MAX_REMEMBERED = 16_384
"""Ids that ended. Workers remember an ended one for a lease time (10 s): at 1,000 requests a
second they are all still here."""


@dataclass(slots=True, eq=False)
class Running:
    """One request under way."""

    epoch: int
    num_attempts_before: int
    """Made by an earlier request of the same id: workers drop attempts that are not above it."""
    choices: Sequence[Choice] = ()


class RunningRequests:
    """An id belongs to one request at a time."""

    def __init__(self) -> None:
        self._running: dict[RequestId, Running] = {}
        self._ended: OrderedDict[RequestId, tuple[int, int]] = OrderedDict()
        """Epoch and last attempt."""

    @contextmanager
    def hold(self, request: Request) -> Iterator[Running]:
        """Own the id; a resume with a higher epoch takes it from whoever has it.

        Raises DuplicateRequest.
        """
        key = request.request_id
        if (other := self._running.get(key)) is not None:
            self._take_from(other, request)
        epoch, last_attempt = self._ended.get(key, (0, 0))
        running = Running(request.epoch, last_attempt if epoch == request.epoch else 0)
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
        for choice in other.choices:
            choice.give_up(StaleFence(f"resumed with epoch {request.epoch}"))

    def _remember(self, key: RequestId, running: Running) -> None:
        last_attempt = max((choice.last_attempt for choice in running.choices), default=0)
        self._ended[key] = (running.epoch, max(last_attempt, running.num_attempts_before))
        self._ended.move_to_end(key)
        while len(self._ended) > MAX_REMEMBERED:
            self._ended.popitem(last=False)
