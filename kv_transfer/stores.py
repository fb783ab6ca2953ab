"""What moving KV needs of an engine; the engine knows nothing of this package."""

from collections.abc import Sequence
from typing import Any, Protocol

from core.blocks import BlockState


class Pin(Protocol):
    """A reader or writer that has begun and not ended."""


class Blocks(Protocol):
    """The bookkeeping of blocks; owned by the event loop thread."""

    @property
    def block_size(self) -> int: ...

    def move(self, block_ids: Sequence[int], source: BlockState, target: BlockState) -> None: ...
    def release(self, block_ids: Sequence[int], held_as: BlockState) -> None: ...
    def pin(self, block_ids: Sequence[int]) -> Pin: ...
    def unpin(self, pin: Any) -> None: ...  # noqa: ANN401 - whatever `pin` returned
    def generations(self, block_ids: Sequence[int]) -> tuple[int, ...]: ...


class KvStore(Protocol):
    """The KV tensors; both calls block, and run in copy threads."""

    def gather(self, layers: range, block_ids: Sequence[int], tokens: range) -> memoryview: ...
    def gather_into(
        self, layers: range, block_ids: Sequence[int], tokens: range, out: memoryview
    ) -> None: ...
    def scatter(
        self, layers: range, block_ids: Sequence[int], tokens: range, payload: memoryview
    ) -> None: ...
