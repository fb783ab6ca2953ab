"""What the simulated router knows of a request, and whose word on it still counts."""

from dataclasses import dataclass, field

from core.lifecycle import Event, State
from core.request import Fence
from tests.simulation.content import Spec
from tests.simulation.decode_node import DecodeNode
from tests.simulation.prefill_node import PrefillNode

UNCOMMITTED = (State.QUEUED, State.PREFILLING, State.HANDING_OFF)


@dataclass(slots=True, eq=False)
class PrefillSide:
    """Where the prefill was placed."""

    node: PrefillNode
    fence: Fence
    num_forced: int
    is_lost: bool = False


@dataclass(slots=True, eq=False)
class DecodeSide:
    """Where the decode was placed; retargets raise the request's fence, not this one."""

    node: DecodeNode
    fence: Fence
    is_lost: bool = False


@dataclass(slots=True, eq=False)
class Request:
    """One request as its router sees it."""

    spec: Spec
    epoch: int = 0
    attempt: int = 0
    state: State = State.QUEUED
    prefill: PrefillSide | None = None
    decode: DecodeSide | None = None
    delivered: list[int] = field(default_factory=list)
    """Survives the router: the client has it."""
    is_placing: bool = False
    heard_at_s: float = 0.0
    ended_at_s: float | None = None
    ended_by: Event | None = None

    @property
    def fence(self) -> Fence:
        """Of the newest placement."""
        return Fence(self.epoch, self.attempt)

    @property
    def needs_prefill(self) -> bool:
        """No instance has it, or that one was lost."""
        return self.prefill is None or self.prefill.is_lost

    @property
    def is_last(self) -> bool:
        """One token is missing: decode is never contacted."""
        return self.spec.num_output_tokens - len(self.delivered) <= 1

    @property
    def needs_decode(self) -> bool:
        """As above."""
        return not self.is_last and (self.decode is None or self.decode.is_lost)

    def is_from_prefill(self, node: PrefillNode, fence: Fence) -> bool:
        """Of the newest prefill placement, also if it was lost since."""
        side = self.prefill
        return side is not None and side.node is node and side.fence == fence

    def is_from_decode(self, node: DecodeNode, fence: Fence) -> bool:
        """Of the decode placement in force: since it was made it may have been retargeted."""
        side = self.decode
        return (
            side is not None
            and side.node is node
            and not side.is_lost
            and side.fence <= fence <= self.fence
        )

    def __str__(self) -> str:
        return f"{self.spec}@{self.epoch}.{self.attempt}:{self.state.value}"
