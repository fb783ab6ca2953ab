"""The decode end's stream: opens a Fetch, receives, and commits once."""

from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import grpc.aio

from core.clock import Clock
from core.ids import Fingerprint
from core.request import FinishReason
from core.timing import HandoffTiming
from core.config import HandoffConfig
from kv_transfer.sink import Sink
from kv_transfer.stores import KvStore


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedToken:
    """The first token of the attempt, as the source's last frame says."""

    token_id: int
    """Any 32 bits: the caller knows the vocabulary."""
    position: int
    """Index among the output tokens; the caller knows how many were forced."""
    finish_reason: FinishReason | None
    """Set when the answer ended with it: nothing to decode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchResult:
    """A committed handoff: `sink.hand_over()` now gives its OWNED blocks."""

    token: FetchedToken
    timing: HandoffTiming
    """All but `decode_queue_s` and `first_step_s`, which the decode step adds."""


class Fetcher:
    """Runs the decode end of all handoffs of one instance."""

    def __init__(
        self,
        *,
        store: KvStore,
        clock: Clock,
        config: HandoffConfig,
        copies: Executor,
        dial: Callable[[str], grpc.aio.Channel],
        fingerprint: Fingerprint,
    ) -> None: ...

    async def run(
        self,
        sink: Sink,
        address: str,
        *,
        num_tokens: int,
        reserve: Callable[[Sink], Awaitable[None]],
    ) -> FetchResult:
        """Fetch the KV of `num_tokens` tokens for `sink.fence` from `address` and commit.

        `reserve(sink)` is awaited once the prefill has started; it returns after it called
        `sink.reserve(block_ids)` with what room there is, and is called again until the whole
        prompt has blocks. When this method returns or raises, no copy into the sink's blocks is
        running; so run one attempt at a time, and end its task before starting the next.

        There is no deadline in here before the prefill starts: cancel the task at the request's.

        Raises KvLost when this prefill cannot deliver (the sink is then LOST, unless it was
        retargeted or stopped meanwhile), and whatever `reserve` raises.
        """
        raise NotImplementedError

    async def run_releases(self) -> None:
        """Loop: tell the sources what was committed. Owned like `SourceBook.reap`."""
        raise NotImplementedError

    @property
    def num_fetches(self) -> int:
        """Attempts running now."""
        return 0
