"""Messages that are lost, late, repeated and out of order, and the nodes they reach."""

from typing import TYPE_CHECKING, Any

from tests.simulation.profile import TICK_S
from tests.simulation.world import Action, World

if TYPE_CHECKING:
    from tests.simulation.router_model import Router
    from tests.simulation.watch import WatchedAllocator


class Node:
    """An instance: loses everything in a crash, and comes back as a new incarnation."""

    router: "Router"

    def __init__(self, world: World, name: str, num_blocks: int) -> None:
        self.world = world
        self.name = name
        self.num_blocks = num_blocks
        self.incarnation = 0
        self.is_alive = True
        self.blocks: WatchedAllocator = world.parts.allocator(num_blocks, world.changed)

    def __str__(self) -> str:
        return f"{self.name}.{self.incarnation}"

    def boot(self) -> None:
        """Start with nothing."""
        self.blocks = self.world.parts.allocator(self.num_blocks, self.world.changed)

    def num_remembered(self) -> int:
        """Handoffs and tombstones: none, at the end of time."""
        raise NotImplementedError

    def settle(self) -> None:
        """Use room that an event may have made."""
        raise NotImplementedError

    def crash(self) -> None:
        """Die; messages and threads under way belong to the past."""
        self.is_alive = False
        self.incarnation += 1

    def restart(self) -> None:
        """Come back; what was sent to the dead does not reach the living."""
        self.is_alive = True
        self.incarnation += 1
        self.boot()

    def later(self, num_ticks: int, action: Action, *args: Any) -> None:
        """Do something later, unless this incarnation has died."""
        self.world.after(num_ticks, self.receive, self.incarnation, action, args)

    def at(self, at_s: float, action: Action, *args: Any) -> None:
        """The same at a moment, one tick past it."""
        when = max(at_s, self.world.now_s) + TICK_S
        self.world.at(when, self.receive, self.incarnation, action, args)

    def receive(self, incarnation: int, action: Action, args: tuple[Any, ...]) -> bool | None:
        """A message, a timer or the end of a thread."""
        if incarnation != self.incarnation or not self.is_alive:
            return False
        happened = action(*args)
        self.settle()
        return happened


class Network:
    """Every pair can talk; nothing is promised."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._profile = world.profile
        self._random = world.random

    def send(self, to: Node | None, action: Action, *args: Any) -> None:
        """To a node's present incarnation, or to the router (None)."""
        if self._profile.loss and self._random() < self._profile.loss:
            return
        self._post(to, action, args)
        if self._profile.duplicate and self._random() < self._profile.duplicate:
            self._post(to, action, args)

    def _post(self, to: Node | None, action: Action, args: tuple[Any, ...]) -> None:
        delay = 1 + int(self._random() * self._profile.spread)
        if self._profile.slow and self._random() < self._profile.slow:
            delay *= 12
        if to is None:
            self._world.after(delay, action, *args)
        else:
            self._world.after(delay, to.receive, to.incarnation, action, args)
