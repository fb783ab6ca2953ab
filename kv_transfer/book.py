"""All Sources of one instance: fences, tombstones, waiting readers, and the reaper."""

from collections.abc import Callable, Sequence

from core.clock import Clock
from core.ids import HandoffId
from core.kv_layout import KvLayout
from core.request import Fence
from core.config import HandoffConfig
from kv_transfer.source import FirstToken, Outcome, Source
from kv_transfer.stores import Blocks


class SourceBook:
    """Owns every Source; called on the event loop's thread."""

    def __init__(
        self, *, layout: KvLayout, blocks: Blocks, clock: Clock, config: HandoffConfig
    ) -> None: ...

    def accept(
        self, handoff_id: HandoffId, fence: Fence, *, on_ended: Callable[[Source], None]
    ) -> Source: ...
    def started(
        self, source: Source, block_ids: Sequence[int], num_tokens: int, num_chunk_tokens: int
    ) -> None: ...
    def progress(self, source: Source, layer: int, num_tokens: int) -> None: ...
    def finished(self, source: Source, token: FirstToken) -> bool: ...
    def end(self, source: Source, outcome: Outcome) -> None: ...
    def release(self, handoff_id: HandoffId, fence: Fence, *, committed: bool) -> None: ...
    def renew(self, handoff_id: HandoffId, fence: Fence) -> None: ...
    async def reap(self) -> None: ...
