"""How the simulated router places a request, and places it anew."""

from typing import TYPE_CHECKING

from core.lifecycle import TERMINAL, Event, State
from core.request import Fence
from tests.simulation.content import Spec
from tests.simulation.decode_node import DecodeNode
from tests.simulation.leaves import Leave
from tests.simulation.network import Network, Node
from tests.simulation.prefill_node import PrefillNode
from tests.simulation.profile import MAX_ATTEMPTS
from tests.simulation.requests import UNCOMMITTED, DecodeSide, PrefillSide, Request
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.router_model import Router

RETRY = 40
"""Ticks until it looks again for an instance that is alive."""


class Placing:
    """Chooses instances and starts calls; every placement raises the attempt."""

    def __init__(self, router: "Router", world: World, network: Network) -> None:
        self._router = router
        self._world = world
        self._network = network
        self.prefills: list[PrefillNode] = []
        self.decodes: list[DecodeNode] = []
        self.down: set[Node] = set()

    def __str__(self) -> str:
        return "router"

    def soon(self, request: Request) -> None:
        """Fill what is missing; once, however many reasons there are."""
        if not request.is_placing:
            request.is_placing = True
            # With too much to do, it helps nobody to come back at once.
            is_again = self._world.profile.is_overload and request.attempt
            delay = self._world.ticks(50, 600) if is_again else self._world.ticks(1, 8)
            self._world.after(delay, self._place, request, request.epoch)

    def release_prefill(self, request: Request) -> None:
        """Its KV is not wanted any more."""
        side = request.prefill
        if side is not None and not side.is_lost:
            args = (request.spec.handoff_id, request.fence, False)
            self._network.send(side.node, side.node.on_release, *args)

    def stop_decode(self, request: Request) -> None:
        """Whatever it does for this request is not wanted any more."""
        side = request.decode
        if side is not None and not side.is_lost:
            args = (request.spec.handoff_id, request.fence)
            self._network.send(side.node, side.node.on_stop, *args)

    def _place(self, request: Request, epoch: int) -> bool | None:
        if epoch != request.epoch:
            return False
        request.is_placing = False
        if request.state in TERMINAL or request.state is State.DECODING:
            return False
        needs_prefill, needs_decode = request.needs_prefill, request.needs_decode
        if not needs_prefill and not needs_decode:
            return False
        if request.attempt == MAX_ATTEMPTS:
            return self._router.happen(request, Event.REFUSED)
        prefills = [n for n in self.prefills if n not in self.down]
        decodes = [n for n in self.decodes if n not in self.down]
        if not prefills or not decodes:
            request.is_placing = True
            self._world.after(RETRY, self._place, request, epoch)
            return False
        request.attempt += 1
        prefill, decode = self._world.rng.choice(prefills), self._world.rng.choice(decodes)
        self._start(request, prefill if needs_prefill else None, decode if needs_decode else None)
        return None

    def _start(
        self, request: Request, prefill: PrefillNode | None, decode: DecodeNode | None
    ) -> None:
        if prefill is not None:
            self._start_prefill(request, prefill)
        if request.is_last:
            self.stop_decode(request)
        elif decode is not None:
            self._start_decode(request, decode)
        elif request.decode is not None:
            self._retarget(request, request.decode.node)
        world, fence = self._world, request.fence
        is_slow = world.random() < 0.15
        delay = world.ticks(12, 80) if is_slow else world.ticks(1, 12)
        world.after(delay, self._placed, request, fence)
        world.after(world.profile.attempt, self._check, request, fence)

    def _start_prefill(self, request: Request, node: PrefillNode) -> None:
        spec, fence, num_forced = request.spec, request.fence, len(request.delivered)
        request.prefill = PrefillSide(node, fence, num_forced)
        args = (spec, fence, num_forced, request.is_last, self._cached_at(request, node))
        self._network.send(node, node.on_prefill, *args)

    def _cached_at(self, request: Request, node: PrefillNode) -> tuple[DecodeNode, Leave] | None:
        """Who has answered what this prompt begins with, or anybody: caches are old news."""
        random = self._world.random()
        if request.spec.after is None or random < 0.2:
            return None
        side = self._router.requests[request.spec.after].decode
        other = self._world.rng.choice(self.decodes) if side is None or random > 0.9 else side.node
        if other in self.down:
            return None
        return other, self._leave(request, other, node, is_prefix=True)

    def _leave(
        self, request: Request, source: Node, fetcher: Node, *, is_prefix: bool = False
    ) -> Leave:
        leave = Leave(request.spec.handoff_id, request.fence, source.name, fetcher.name, is_prefix)
        self._world.checks.gave_leave(leave)
        self._world.leaves.append(leave)
        return leave

    def _start_decode(self, request: Request, node: DecodeNode) -> None:
        request.decode = DecodeSide(node, request.fence)
        self._network.send(node, node.on_decode, *self._decode_args(request, node))

    def _retarget(self, request: Request, node: DecodeNode) -> None:
        self._network.send(node, node.on_retarget, *self._decode_args(request, node))

    def _decode_args(
        self, request: Request, node: DecodeNode
    ) -> tuple[Spec, Fence, PrefillNode, int, Leave]:
        """Forced is what was forced on the prefill, even if more is delivered by now."""
        source = request.prefill
        assert source is not None
        leave = self._leave(request, source.node, node)
        return request.spec, request.fence, source.node, source.num_forced, leave

    def _placed(self, request: Request, fence: Fence) -> bool | None:
        """The calls were started."""
        sides = (request.prefill, request.decode)
        if fence != request.fence or any(s is not None and s.is_lost for s in sides):
            return False
        return self._router.happen(request, Event.PLACED)

    def _check(self, request: Request, fence: Fence) -> bool | None:
        """The bound on an attempt that makes no progress."""
        if fence != request.fence or request.state not in UNCOMMITTED:
            return False
        return self._router.lose_prefill(request, Event.PREFILL_LOST)
