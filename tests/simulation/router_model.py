"""The router of the simulation: walks LIFECYCLE, places anew, and judges what is late."""

from dataclasses import dataclass, field

from core.handoff import SinkState
from core.lifecycle import TERMINAL, Event, State
from core.request import Fence
from kv_transfer.source import Outcome
from tests.simulation.content import Spec
from tests.simulation.coverage import LIFECYCLE
from tests.simulation.decode_node import DecodeNode, Job
from tests.simulation.network import Network, Node
from tests.simulation.prefill_node import PrefillNode
from tests.simulation.profile import ATTEMPT, MAX_ATTEMPTS, SILENCE, TICK_S
from tests.simulation.world import World


@dataclass(slots=True, eq=False)
class PrefillSide:
    """Where the prefill was placed."""

    node: PrefillNode
    fence: Fence
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

    @property
    def fence(self) -> Fence:
        """Of the newest placement."""
        return Fence(self.epoch, self.attempt)

    @property
    def needs_decode(self) -> bool:
        """More than one token is missing."""
        return self.spec.num_output_tokens - len(self.delivered) > 1

    def __str__(self) -> str:
        return f"{self.spec}@{self.epoch}.{self.attempt}:{self.state.value}"


class Router:
    """Routers, seen as one: a crash costs a request its memory, and raises its epoch."""

    def __init__(
        self,
        world: World,
        network: Network,
        prefills: list[PrefillNode],
        decodes: list[DecodeNode],
    ) -> None:
        self._world = world
        self._network = network
        self._prefills = prefills
        self._decodes = decodes
        self._num_streams = 0
        self._down: set[Node] = set()
        self.requests: list[Request] = []

    def __str__(self) -> str:
        return "router"

    def next_stream_id(self) -> int:
        """Unique in this world."""
        self._num_streams += 1
        return self._num_streams

    def submit(self, spec: Spec) -> Request:
        """A client asks."""
        request = Request(spec)
        self.requests.append(request)
        self._place_soon(request)
        self._world.at(spec.deadline_s, self._happen, request, Event.DEADLINE)
        return request

    def cancel(self, request: Request) -> bool:
        """The client gives up."""
        return self._happen(request, Event.CANCELLED)

    def lose_memory(self, request: Request) -> bool | None:
        """This router dies; the client resumes on another with the tokens it has."""
        if request.state in TERMINAL:
            return False
        request.epoch, request.attempt, request.state = request.epoch + 1, 0, State.QUEUED
        request.prefill = request.decode = None
        request.is_placing = False
        self._place_soon(request)
        return None

    def node_down(self, node: Node) -> None:
        """Its connection broke, or its heartbeat stopped."""
        self._down.add(node)
        for request in self.requests:
            prefill, decode = request.prefill, request.decode
            if prefill is not None and prefill.node is node:
                self._lose_prefill(request, Event.PREFILL_LOST)
            if decode is not None and decode.node is node:
                self._lose_decode(request)

    def node_up(self, node: Node) -> None:
        """It has joined again."""
        self._down.discard(node)

    # Answers of prefill instances.

    def on_prefill_token(
        self, spec: Spec, node: PrefillNode, fence: Fence, position: int, token: int
    ) -> bool | None:
        """The first token of an attempt."""
        request = self.requests[spec.index]
        if not _is_from_prefill(request, node, fence):
            return False
        if request.state not in TERMINAL:
            self._deliver(request, position, (token,))
        is_last = position == spec.num_output_tokens - 1
        return self._happen(request, Event.STOPPED if is_last else Event.PREFILLED)

    def on_prefill_ended(
        self, spec: Spec, node: PrefillNode, fence: Fence, outcome: Outcome
    ) -> bool | None:
        """The lease is over."""
        request = self.requests[spec.index]
        if outcome is Outcome.COMMITTED or not _is_from_prefill(request, node, fence):
            return False
        return self._lose_prefill(request, Event.PREFILL_LOST)

    def on_prefill_refused(self, spec: Spec, node: PrefillNode, fence: Fence) -> bool | None:
        """The call was not accepted."""
        return self.on_prefill_ended(spec, node, fence, Outcome.ABORTED)

    # Answers of decode instances.

    def on_output(
        self,
        spec: Spec,
        node: DecodeNode,
        fence: Fence,
        job: Job,
        first: int,
        tokens: tuple[int, ...],
    ) -> bool | None:
        """It has committed, and these are its tokens since what was acknowledged."""
        request = self.requests[spec.index]
        if not _is_from_decode(request, node, fence):
            self._network.send(node, node.on_stop, spec.handoff_id, fence)
            return False
        self._committed(request, node, fence)
        request.heard_at_s = self._world.now_s
        if request.state not in TERMINAL:
            self._deliver(request, first, tokens)
            next_position = len(request.delivered)
            self._network.send(node, node.batch.on_ack, job, next_position)
        if first + len(tokens) >= spec.num_output_tokens:
            self._happen(request, Event.STOPPED)
        return None

    def on_kv_lost(self, spec: Spec, node: DecodeNode, fence: Fence) -> bool | None:
        """Decode cannot get the KV from the prefill of this fence."""
        request = self.requests[spec.index]
        if fence != request.fence or not _is_from_decode(request, node, fence):
            return False
        return self._lose_prefill(request, Event.KV_LOST)

    def on_retarget_refused(
        self, spec: Spec, node: DecodeNode, fence: Fence, state: SinkState | None
    ) -> bool | None:
        """The handoff is unknown or over there, or has committed."""
        request = self.requests[spec.index]
        if state is SinkState.COMMITTED or not _is_from_decode(request, node, fence):
            return False
        return self._lose_decode(request)

    def on_decode_ended(self, spec: Spec, node: DecodeNode, fence: Fence) -> bool | None:
        """It had to give the request up."""
        request = self.requests[spec.index]
        if not _is_from_decode(request, node, fence):
            return False
        return self._lose_decode(request)

    def on_error(self, spec: Spec, node: Node, fence: Fence) -> bool | None:
        """An error that no retry mends, from either side."""
        request = self.requests[spec.index]
        if isinstance(node, PrefillNode) and not _is_from_prefill(request, node, fence):
            return False
        if isinstance(node, DecodeNode) and not _is_from_decode(request, node, fence):
            return False
        return self._happen(request, Event.REFUSED)

    # What follows.

    def _committed(self, request: Request, node: DecodeNode, fence: Fence) -> None:
        before = request.state
        self._happen(request, Event.COMMITTED)
        if before is not State.DECODING and request.state is State.DECODING:
            self._world.checks.accepted(request.spec.handoff_id, fence, str(node))
            self._world.after(SILENCE, self._check_silence, request, request.fence)
            if fence != request.fence:
                self._release_prefill(request)

    def _deliver(self, request: Request, first: int, tokens: tuple[int, ...]) -> None:
        num_known = len(request.delivered) - first
        if num_known < 0:
            return  # a gap: an earlier message is still under way
        for token in tokens[num_known:]:
            self._world.checks.delivered(request.spec, request.delivered, token)
            request.delivered.append(token)

    def _happen(self, request: Request, event: Event) -> bool:
        state = LIFECYCLE.advance(request.state, event)
        if state is None:
            return False
        is_over = state in TERMINAL and request.state not in TERMINAL
        request.state = state
        if is_over:
            request.ended_at_s = self._world.now_s
            self._release_prefill(request)
            self._stop_decode(request)
        return True

    def _lose_prefill(self, request: Request, event: Event) -> bool:
        side = request.prefill
        before = request.state
        happened = self._happen(request, event)
        if side is not None and not side.is_lost and before in _UNCOMMITTED:
            self._release_prefill(request)
            side.is_lost = True
            self._place_soon(request)
        return happened

    def _lose_decode(self, request: Request) -> bool:
        side = request.decode
        if side is not None and side.is_lost:
            return False
        before = request.state
        happened = self._happen(request, Event.DECODE_LOST)
        if side is not None and before not in TERMINAL:
            self._stop_decode(request)
            side.is_lost = True
            if before is State.DECODING and request.prefill is not None:
                request.prefill.is_lost = True
            self._place_soon(request)
        return happened

    def _release_prefill(self, request: Request) -> None:
        side = request.prefill
        if side is not None and not side.is_lost:
            args = (request.spec.handoff_id, request.fence, False)
            self._network.send(side.node, side.node.on_release, *args)

    def _stop_decode(self, request: Request) -> None:
        side = request.decode
        if side is not None and not side.is_lost:
            args = (request.spec.handoff_id, request.fence)
            self._network.send(side.node, side.node.on_stop, *args)

    # Placement.

    def _place_soon(self, request: Request) -> None:
        if not request.is_placing:
            request.is_placing = True
            self._world.after(self._world.ticks(1, 8), self._place, request, request.epoch)

    def _place(self, request: Request, epoch: int) -> bool | None:
        if epoch != request.epoch:
            return False
        request.is_placing = False
        if request.state in TERMINAL or request.state is State.DECODING:
            return False
        needs_prefill = request.prefill is None or request.prefill.is_lost
        needs_decode = request.needs_decode and (
            request.decode is None or request.decode.is_lost
        )
        if not needs_prefill and not needs_decode:
            return False
        if request.attempt == MAX_ATTEMPTS:
            return self._happen(request, Event.REFUSED)
        prefills = [n for n in self._prefills if n not in self._down]
        decodes = [n for n in self._decodes if n not in self._down]
        if not prefills or not decodes:
            request.is_placing = True
            self._world.after(40, self._place, request, epoch)
            return False
        request.attempt += 1
        if needs_prefill:
            self._start_prefill(request, self._world.rng.choice(prefills))
        if needs_decode:
            self._start_decode(request, self._world.rng.choice(decodes))
        elif needs_prefill and request.decode is not None and not request.decode.is_lost:
            self._retarget(request, request.decode.node)
        self._world.after(self._world.ticks(1, 12), self._placed, request, request.fence)
        self._world.after(ATTEMPT, self._check_attempt, request, request.fence)
        return None

    def _start_prefill(self, request: Request, node: PrefillNode) -> None:
        request.prefill = PrefillSide(node, request.fence)
        num_forced, only_first = len(request.delivered), not request.needs_decode
        args = (request.spec, request.fence, num_forced, only_first)
        self._network.send(node, node.on_prefill, *args)

    def _start_decode(self, request: Request, node: DecodeNode) -> None:
        assert request.prefill is not None
        request.decode = DecodeSide(node, request.fence)
        args = (request.spec, request.fence, request.prefill.node)
        self._network.send(node, node.on_decode, *args)

    def _retarget(self, request: Request, node: DecodeNode) -> None:
        assert request.prefill is not None
        args = (request.spec, request.fence, request.prefill.node)
        self._network.send(node, node.on_retarget, *args)

    def _placed(self, request: Request, fence: Fence) -> bool | None:
        """The calls were started."""
        sides = (request.prefill, request.decode)
        if fence != request.fence or any(s is not None and s.is_lost for s in sides):
            return False
        return self._happen(request, Event.PLACED)

    def _check_attempt(self, request: Request, fence: Fence) -> bool | None:
        """The bound on an attempt that makes no progress."""
        if fence != request.fence or request.state not in _UNCOMMITTED:
            return False
        return self._lose_prefill(request, Event.PREFILL_LOST)

    def _check_silence(self, request: Request, fence: Fence) -> bool | None:
        if fence != request.fence or request.state is not State.DECODING:
            return False
        silent_s = self._world.now_s - request.heard_at_s
        if silent_s >= SILENCE * TICK_S:
            return self._lose_decode(request)
        self._world.after(SILENCE, self._check_silence, request, fence)
        return False


_UNCOMMITTED = (State.QUEUED, State.PREFILLING, State.HANDING_OFF)


def _is_from_prefill(request: Request, node: PrefillNode, fence: Fence) -> bool:
    """Of the newest prefill placement, also if it was lost since."""
    side = request.prefill
    return side is not None and side.node is node and side.fence == fence


def _is_from_decode(request: Request, node: DecodeNode, fence: Fence) -> bool:
    """Of the decode placement in force."""
    side = request.decode
    return (
        side is not None
        and side.node is node
        and not side.is_lost
        and side.fence <= fence <= request.fence
    )
