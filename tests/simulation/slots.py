"""Payloads: in their frames, or in memory of the source that all of its streams share."""

from dataclasses import dataclass, field
from typing import Protocol

from tests.simulation.checks import RuleBroken
from tests.simulation.content import POISON

NUM_SLOTS = 3


class Payload(Protocol):
    """The bytes that a frame speaks of."""

    def read(self) -> list[int]:
        """As they are now."""
        ...

    def is_intact(self) -> bool:
        """They are still what they were."""
        ...


@dataclass(frozen=True, slots=True)
class Inline:
    """In the frame."""

    values: list[int]

    def read(self) -> list[int]:
        """Always the same."""
        return self.values

    def is_intact(self) -> bool:
        """Nobody else has them."""
        return True


@dataclass(slots=True, eq=False)
class Slot:
    """Room for one payload."""

    generation: int = 0
    values: list[int] = field(default_factory=list)
    stream_id: int | None = None
    """Whose payload is in it and not emptied."""
    is_filling: bool = False
    """A copy thread writes to it."""


@dataclass(frozen=True, slots=True)
class InSlot:
    """In the source's memory; the source may have taken the stream for dead since."""

    slot: Slot
    generation: int
    num_values: int

    def read(self) -> list[int]:
        """What is there now, whosever it is."""
        values = self.slot.values
        return (values + [POISON] * self.num_values)[: self.num_values]

    def is_intact(self) -> bool:
        """The fence: nobody has filled it since."""
        return self.slot.generation == self.generation


class Slots:
    """The memory of one instance; it outlives the instance where others have mapped it."""

    def __init__(self) -> None:
        self._slots = [Slot() for _ in range(NUM_SLOTS)]
        self._dead: set[int] = set()

    def place(self, stream_id: int) -> Slot | None:
        """A slot to fill; None while all are in use."""
        for slot in self._slots:
            if slot.stream_id is None:
                if slot.is_filling:
                    raise RuleBroken(f"stream {stream_id} got a slot that a thread fills")
                slot.stream_id, slot.is_filling = stream_id, True
                # Before the first byte of it is overwritten.
                slot.generation += 1
                slot.values = []
                return slot
        return None

    def filled(self, slot: Slot, values: list[int]) -> None:
        """The gather has ended; nobody may want it any more."""
        slot.values, slot.is_filling = values, False
        if slot.stream_id in self._dead:
            slot.stream_id = None

    def emptied(self, stream_id: int, slot: Slot, generation: int) -> None:
        """The sink has scattered it."""
        if slot.stream_id == stream_id and slot.generation == generation:
            slot.stream_id = None

    def closed(self, stream_id: int) -> None:
        """Its slots can be filled again, those being filled when that ends."""
        self._dead.add(stream_id)
        for slot in self._slots:
            if slot.stream_id == stream_id and not slot.is_filling:
                slot.stream_id = None
