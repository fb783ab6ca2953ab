"""The last requests that ended, in numbers: what planning from the load that is served looks at."""

import secrets
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from core.errors import FieldViolation, InvalidRequest
from router.record import RequestRecord
from rpc.pb import cluster_pb2

MAX_ENDED = 4096
"""As many as one reply may hold. Ten seconds of 400 requests a second, which is more than one
router takes and longer than a controller waits between two calls; 0.5 MB."""


class _Ended(NamedTuple):
    """Numbers alone: a record would hold on to much more."""

    arrived_at_s: float
    num_prompt_tokens: int
    num_hit_tokens: int
    num_output_tokens: int
    ttft_s: float
    tpot_s: float
    status: str


class EndedRequests:
    """A ring of the newest, each with a place in the list of all that ever ended here."""

    def __init__(self) -> None:
        self._ring: deque[_Ended] = deque(maxlen=MAX_ENDED)
        self._num_ended = 0
        self._incarnation = secrets.token_hex(8)

    def ended(self, record: RequestRecord) -> None:
        """A request is over; one that was refused, too: it came, and missed."""
        self._ring.append(_numbers(record))
        self._num_ended += 1

    def reply(
        self, request: cluster_pb2.WorkloadRequest, now_s: float, *, num_open: int
    ) -> cluster_pb2.WorkloadReply:
        """What ended after a place in the list.

        A place that is not reached yet was another incarnation's: the list begins anew, and is
        told from its oldest. Raises InvalidRequest.
        """
        if request.max > MAX_ENDED:
            reason = f"must be 0 to {MAX_ENDED}, got {request.max}"
            raise InvalidRequest((FieldViolation("max", reason),))
        after = request.after if request.after <= self._num_ended else 0
        oldest = self._num_ended - len(self._ring)
        begin = max(after, oldest)
        end = min(begin + (request.max or MAX_ENDED), self._num_ended)
        return cluster_pb2.WorkloadReply(
            requests=self._between(begin - oldest, end - oldest, now_s),
            next=end,
            num_missed=begin - after,
            incarnation=self._incarnation,
            num_open=num_open,
        )

    def _between(self, begin: int, end: int, now_s: float) -> Iterator[cluster_pb2.EndedRequest]:
        for each in islice(self._ring, begin, end):
            yield cluster_pb2.EndedRequest(
                arrived_ago_s=now_s - each.arrived_at_s,
                num_prompt_tokens=each.num_prompt_tokens,
                num_hit_tokens=each.num_hit_tokens,
                num_output_tokens=each.num_output_tokens,
                ttft_s=each.ttft_s,
                tpot_s=each.tpot_s,
                status=each.status,
            )


def _numbers(record: RequestRecord) -> _Ended:
    """Of the first choice; without one, lengths as far as they are known."""
    if not record.choices:
        return _Ended(
            record.arrived_at_s, record.num_prompt_tokens, 0, 0, 0.0, 0.0, record.outcome.status
        )
    line = record.choices[0].timeline
    timing = line.timing()
    return _Ended(
        record.arrived_at_s,
        record.num_prompt_tokens,
        timing.prefill.num_hit_tokens,
        line.num_tokens,
        timing.ttft_s,
        timing.tpot_s,
        record.outcome.status,
    )
