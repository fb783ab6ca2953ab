"""A handoff within one instance: the blocks change hands; nothing is copied, sent or reserved."""

from collections.abc import Awaitable, Callable

from core.clock import Clock
from core.config import HandoffConfig
from core.errors import StaleFence, UnknownRequest
from core.handoff import SinkState, SourceState
from core.request import Fence
from core.timing import HandoffTiming
from core.work import KvLostReason, Peer
from kv_transfer.book import Reading, SourceBook
from kv_transfer.errors import KvLost
from kv_transfer.fetch import Fetcher
from kv_transfer.result import FetchedToken, FetchResult
from kv_transfer.sink import Sink
from kv_transfer.source import FirstToken

CARRIER = "local"


class LocalFetch:
    """The decode end of handoffs whose prefill is in the same instance."""

    def __init__(self, book: SourceBook, clock: Clock, config: HandoffConfig) -> None:
        self._book = book
        self._clock = clock
        self._config = config

    async def run(self, sink: Sink, *, num_tokens: int) -> FetchResult:
        """Wait for the prefill and take its blocks over.

        Waits as long as the prefill queues and computes: cancel the task at the request's deadline.
        Raises KvLost when that prefill has ended (the sink is then LOST, unless it was retargeted
        or stopped meanwhile).
        """
        attempt = sink.fence
        try:
            with self._book.reading(
                sink.handoff_id,
                attempt,
                max_segment_bytes=self._config.max_segment_bytes,
            ) as reading:
                token = await _first_token(reading)
                return self._take_over(reading, sink, attempt, token, num_tokens)
        except (KvLost, StaleFence, UnknownRequest) as error:
            sink.lose(attempt, self._clock.now_s())
            raise KvLost(KvLostReason.LEASE, str(error)) from None

    def _take_over(
        self, reading: Reading, sink: Sink, attempt: Fence, token: FirstToken, num_tokens: int
    ) -> FetchResult:
        if sink.fence != attempt or sink.state is not SinkState.WAITING:
            raise KvLost(KvLostReason.LEASE, f"{attempt} ended while it waited for its prefill")
        if reading.source.num_tokens != num_tokens:
            raise KvLost(
                KvLostReason.LEASE,
                f"the prefill has {reading.source.num_tokens} tokens, waited for are {num_tokens}",
            )
        sink.adopt(self._book.hand_over(reading.source), num_tokens)
        timing = HandoffTiming(
            source_tail_s=max(0.0, self._clock.now_s() - token.sampled_at_s),
            num_kv_tokens=num_tokens,
            carrier=CARRIER,
        )
        return FetchResult(token=_fetched(token), timing=timing, is_exact=True)


class NearestFetch:
    """Takes over what is here, and fetches what is elsewhere."""

    def __init__(self, own_address: str, local: LocalFetch, fetcher: Fetcher) -> None:
        self._own_address = own_address
        self._local = local
        self._fetcher = fetcher

    async def run(
        self,
        sink: Sink,
        peer: Peer,
        *,
        num_tokens: int,
        reserve: Callable[[Sink], Awaitable[None]],
    ) -> FetchResult:
        """One attempt; see LocalFetch.run and Fetcher.run."""
        if peer.address == self._own_address:
            return await self._local.run(sink, num_tokens=num_tokens)
        return await self._fetcher.run(sink, peer, num_tokens=num_tokens, reserve=reserve)


async def _first_token(reading: Reading) -> FirstToken:
    """What the prefill sampled, once it has."""
    source = reading.source
    while True:
        reading.changed.clear()
        if source.state is SourceState.ENDED or not reading.is_current:
            raise KvLost(KvLostReason.LEASE, f"its prefill has ended ({source.outcome})")
        if source.first_token is not None:
            return source.first_token
        await reading.changed.wait()


def _fetched(token: FirstToken) -> FetchedToken:
    return FetchedToken(
        token_id=token.token_id,
        position=token.position,
        finish_reason=token.finish_reason,
        logprobs=token.logprobs,
    )
