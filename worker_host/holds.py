"""Blocks that a running step may read or write: nobody else gets them before it returned."""

from collections.abc import Iterable, Sequence

from kv_transfer.stores import Blocks, Pin


class StepHolds:
    """Pins for as long as a request takes part in steps.

    A request's blocks are pinned once, not once per step: the pins of a step over long contexts
    would cost more than its scheduling.
    """

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._is_running = False
        self._ended: list[Pin] = []

    def hold(self, block_ids: Sequence[int]) -> Pin:
        """From now on steps may use these blocks."""
        return self._blocks.pin(block_ids)

    def let_go(self, pins: Iterable[Pin]) -> None:
        """No later step uses them; they are freed when the running one has returned."""
        self._ended.extend(pins)
        if not self._is_running:
            self._unpin()

    def step_begins(self) -> None:
        """What is held now may be in use until `step_returned`."""
        self._is_running = True

    def step_returned(self) -> None:
        """Free what was let go meanwhile."""
        self._is_running = False
        self._unpin()

    def _unpin(self) -> None:
        ended, self._ended = self._ended, []
        for pin in ended:
            self._blocks.unpin(pin)
