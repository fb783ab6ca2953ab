"""The router of the simulation: walks LIFECYCLE, and judges what is late."""

from core.handoff import SinkState
from core.lifecycle import TERMINAL, Event, State
from core.request import Fence
from kv_transfer.source import Outcome
from tests.simulation.clients import Clients
from tests.simulation.content import Spec
from tests.simulation.coverage import LIFECYCLE
from tests.simulation.decode_node import DecodeNode, Job
from tests.simulation.network import Network, Node
from tests.simulation.placing import Placing
from tests.simulation.prefill_node import PrefillNode
from tests.simulation.profile import SILENCE, TICK_S
from tests.simulation.requests import UNCOMMITTED, Request
from tests.simulation.world import World


class Router:
    """Routers, seen as one: a crash costs a request its memory, and raises its epoch."""

    def __init__(self, world: World, network: Network) -> None:
        self._world = world
        self._network = network
        self._num_streams = 0
        self._clients = Clients(self, world)
        self.placing = Placing(self, world, network)
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
        self.placing.soon(request)
        self._world.at(spec.deadline_s, self.happen, request, Event.DEADLINE)
        return request

    def lose_memory(self, request: Request) -> bool | None:
        """This router dies; the client resumes on another with the tokens it has."""
        if request.state in TERMINAL:
            return False
        request.epoch, request.attempt, request.state = request.epoch + 1, 0, State.QUEUED
        request.prefill = request.decode = None
        request.is_placing = False
        self._clients.find_stop_string(request)
        self.placing.soon(request)
        return None

    def node_down(self, node: Node) -> None:
        """Its connection broke, or its heartbeat stopped."""
        self.placing.down.add(node)
        for request in self.requests:
            prefill, decode = request.prefill, request.decode
            if prefill is not None and prefill.node is node:
                self.lose_prefill(request, Event.PREFILL_LOST)
            if decode is not None and decode.node is node:
                self.lose_decode(request)

    def node_up(self, node: Node) -> None:
        """It has joined again."""
        self.placing.down.discard(node)

    # Answers of prefill instances.

    def on_prefill_token(
        self, spec: Spec, node: PrefillNode, fence: Fence, position: int, token: int
    ) -> bool | None:
        """The first token of an attempt."""
        request = self.requests[spec.index]
        if not request.is_from_prefill(node, fence):
            return False
        self._clients.deliver(request, position, (token,))
        is_last = position == spec.num_output_tokens - 1
        return self.happen(request, Event.STOPPED if is_last else Event.PREFILLED)

    def on_prefill_ended(
        self, spec: Spec, node: PrefillNode, fence: Fence, outcome: Outcome
    ) -> bool | None:
        """The lease is over."""
        request = self.requests[spec.index]
        if outcome is Outcome.COMMITTED or not request.is_from_prefill(node, fence):
            return False
        return self.lose_prefill(request, Event.PREFILL_LOST)

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
        if not request.is_from_decode(node, fence):
            self._network.send(node, node.on_stop, spec.handoff_id, fence)
            return False
        self._committed(request, node, fence)
        request.heard_at_s = self._world.now_s
        self._clients.deliver(request, first, tokens)
        self._network.send(node, node.batch.on_ack, job, len(request.delivered))
        if first + len(tokens) >= spec.num_output_tokens:
            self.happen(request, Event.STOPPED)
        return None

    def on_kv_lost(self, spec: Spec, node: DecodeNode, fence: Fence) -> bool | None:
        """Decode cannot get the KV from the prefill of this fence."""
        request = self.requests[spec.index]
        if fence != request.fence or not request.is_from_decode(node, fence):
            return False
        return self.lose_prefill(request, Event.KV_LOST)

    def on_retarget_refused(
        self, spec: Spec, node: DecodeNode, fence: Fence, state: SinkState | None
    ) -> bool | None:
        """The handoff is unknown or over there, or has committed."""
        request = self.requests[spec.index]
        if state is SinkState.COMMITTED or not request.is_from_decode(node, fence):
            return False
        return self.lose_decode(request)

    def on_decode_ended(self, spec: Spec, node: DecodeNode, fence: Fence) -> bool | None:
        """It had to give the request up."""
        request = self.requests[spec.index]
        return request.is_from_decode(node, fence) and self.lose_decode(request)

    def on_prefill_error(self, spec: Spec, node: PrefillNode, fence: Fence) -> bool | None:
        """One that no retry mends."""
        request = self.requests[spec.index]
        return request.is_from_prefill(node, fence) and self.happen(request, Event.REFUSED)

    def on_decode_error(self, spec: Spec, node: DecodeNode, fence: Fence) -> bool | None:
        """As above."""
        request = self.requests[spec.index]
        return request.is_from_decode(node, fence) and self.happen(request, Event.REFUSED)

    # What follows.

    def happen(self, request: Request, event: Event) -> bool:
        """Walk the table; the last step tells both sides."""
        state = LIFECYCLE.advance(request.state, event)
        if state is None:
            return False
        is_over = state in TERMINAL
        request.state = state
        if is_over:
            request.ended_at_s, request.ended_by = self._world.now_s, event
            self.placing.release_prefill(request)
            self.placing.stop_decode(request)
        return True

    def lose_prefill(self, request: Request, event: Event) -> bool:
        """The prefill of this attempt cannot deliver any more."""
        side, before = request.prefill, request.state
        happened = self.happen(request, event)
        if side is not None and not side.is_lost and before in UNCOMMITTED:
            self.placing.release_prefill(request)
            side.is_lost = True
            self.placing.soon(request)
        return happened

    def lose_decode(self, request: Request) -> bool:
        """The decode of this placement cannot deliver any more."""
        side, before = request.decode, request.state
        if side is None or side.is_lost:
            return False
        happened = self.happen(request, Event.DECODE_LOST)
        if before not in TERMINAL:
            self.placing.stop_decode(request)
            side.is_lost = True
            # For one more token no other decode is asked: a prefill computes it.
            needs_all = before is State.DECODING or request.is_last
            if needs_all and request.prefill is not None:
                self.placing.release_prefill(request)
                request.prefill.is_lost = True
            self.placing.soon(request)
        return happened

    def _committed(self, request: Request, node: DecodeNode, fence: Fence) -> None:
        before = request.state
        self.happen(request, Event.COMMITTED)
        if before is not State.DECODING and request.state is State.DECODING:
            self._world.checks.accepted(request.spec.handoff_id, fence, str(node))
            self._world.after(SILENCE, self._check_silence, request, request.fence)
            if fence != request.fence:
                self.placing.release_prefill(request)

    def _check_silence(self, request: Request, fence: Fence) -> bool | None:
        if fence != request.fence or request.state is not State.DECODING:
            return False
        silent_s = self._world.now_s - request.heard_at_s
        if silent_s >= SILENCE * TICK_S:
            return self.lose_decode(request)
        self._world.after(SILENCE, self._check_silence, request, fence)
        return False
