"""What the router remembers of its last requests, for whoever asks what became of one."""

from collections import OrderedDict

from core.errors import UnknownRequest
from core.ids import RequestId
from policy.correction import Mean
from router.record import RequestRecord

MAX_RECENT = 1024
"""A minute of traffic at 17 requests a second; 4 KB each, with one choice placed once."""
MAX_NOTABLE = 256
"""Whoever asks, mostly asks about these; one in a hundred keeps for 25,000 requests."""
ATTEMPTS_PER_REQUEST = 4
"""That a ring has room for, on average: 20 MB at the very most, of two rings whose every request
has many choices that all failed, with messages as long as they may be."""
SLOW_FACTOR = 3.0
"""Times what was usual of late, where no target says what is slow."""

_ANOTHERS = "DUPLICATE_REQUEST"


class History:
    """Those under way, the last ones, and the last ones worth a look: bounded, newest kept."""

    def __init__(self, *, slow_ttft_s: float = 0.0, slow_tpot_s: float = 0.0) -> None:
        """From where on an answer is slow; 0: by comparison with others."""
        self._running: dict[RequestId, RequestRecord] = {}
        self._recent, self._notable = _Ring(MAX_RECENT), _Ring(MAX_NOTABLE)
        self._ttft, self._tpot = _Usual(slow_ttft_s), _Usual(slow_tpot_s)

    def began(self, record: RequestRecord) -> None:
        """A request came in."""
        self._running.setdefault(record.request_id, record)

    def ended(self, record: RequestRecord) -> None:
        """It is over, one way or another."""
        key = record.request_id
        if self._running.get(key) is record:
            del self._running[key]
        if record.outcome.reason == _ANOTHERS:
            return  # under this id another one is to be found
        self._recent.put(record)
        if self._is_notable(record):
            self._notable.put(record)
        else:
            self._notable.remove(key)

    def get(self, request_id: str) -> RequestRecord:
        """The newest of this id. Raises UnknownRequest."""
        key = RequestId(request_id)
        for ring in (self._running, self._recent, self._notable):
            if (record := ring.get(key)) is not None:
                return record
        raise UnknownRequest(
            f"not among the last {MAX_RECENT} requests of this router, nor among the last"
            f" {MAX_NOTABLE} that failed, were placed more than once or were slow"
        )

    def _is_notable(self, record: RequestRecord) -> bool:
        """It failed once it was admitted, was placed anew, or was slow.

        Who is refused was told why; in a flood they would be all there is to see.
        """
        is_slow = False
        for choice in record.choices:
            timing = choice.timeline.timing()
            # Both are looked at: each is compared with those before it.
            is_slow |= self._ttft.is_exceeded(timing.ttft_s)
            is_slow |= self._tpot.is_exceeded(timing.tpot_s)
        has_failed = record.outcome.is_error and record.outcome.status != "CANCELLED"
        return is_slow or record.num_attempts > 1 or (has_failed and bool(record.choices))


class _Usual:
    """One figure's target, or its running mean."""

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s
        self._mean = Mean()

    def is_exceeded(self, value_s: float) -> bool:
        """Whether it is slow; 0 is no value."""
        if not value_s:
            return False
        limit_s = self._target_s or SLOW_FACTOR * self._mean.value
        is_first = not self._target_s and not self._mean.num_seen
        self._mean = self._mean.after(value_s)
        return value_s > limit_s and not is_first


class _Ring:
    """The newest requests, one of each id; bounded in requests and in attempts of all of them."""

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._records: OrderedDict[RequestId, RequestRecord] = OrderedDict()
        self._num_attempts = 0

    def get(self, key: RequestId) -> RequestRecord | None:
        return self._records.get(key)

    def put(self, record: RequestRecord) -> None:
        """In place of an earlier one of its id, and of the oldest there are too many of."""
        self.remove(record.request_id)
        self._records[record.request_id] = record
        self._num_attempts += _num_attempts(record)
        max_attempts = ATTEMPTS_PER_REQUEST * self._max_requests
        while len(self._records) > self._max_requests or self._num_attempts > max_attempts:
            self.remove(next(iter(self._records)))

    def remove(self, key: RequestId) -> None:
        if (record := self._records.pop(key, None)) is not None:
            self._num_attempts -= _num_attempts(record)


def _num_attempts(record: RequestRecord) -> int:
    return sum(len(choice.attempts) for choice in record.choices)
