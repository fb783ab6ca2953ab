"""Messages that are lost, late, repeated and out of order, and the nodes they reach."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from core.config import HandoffConfig
from engine.prefix_cache import PrefixCache
from kv_transfer.book import SourceBook
from tests.simulation.content import HASHER, LAYOUT, Spec
from tests.simulation.profile import AWAIT, LEASE, TICK_S
from tests.simulation.sending import Sending
from tests.simulation.world import Action, World
from worker_host.blocks import InstanceBlocks

if TYPE_CHECKING:
    from tests.simulation.router_model import Router


class Node:
    """An instance with its blocks, its prefix cache and what others read of them: loses everything
    in a crash, and comes back as a new incarnation."""

    router: "Router"

    def __init__(self, world: World, network: "Network", name: str, num_blocks: int) -> None:
        self.world = world
        self.network = network
        self.name = name
        self.num_blocks = num_blocks
        self.incarnation = 0
        self.is_alive = True
        self.boot()

    def __str__(self) -> str:
        return f"{self.name}.{self.incarnation}"

    def boot(self) -> None:
        """Start with nothing."""
        world, cache = self.world, PrefixCache()
        self.allocator = world.parts.allocator(self.num_blocks, world.changed, cache)
        self.blocks = InstanceBlocks(self.allocator, cache, HASHER)
        group_bytes, max_segment_bytes = world.ticks(8, 64), world.ticks(8, 80)
        self.group_bytes = min(group_bytes, max_segment_bytes)
        config = HandoffConfig(
            lease_ttl_s=LEASE * TICK_S,
            unknown_handoff_wait_s=AWAIT * TICK_S,
            max_segment_bytes=max_segment_bytes,
        )
        self.book = SourceBook(layout=LAYOUT, blocks=self.blocks, clock=world.clock, config=config)
        self.sending = Sending(self)
        self._is_reaping = False

    def num_remembered(self) -> int:
        """Sources, tombstones and streams: none, at the end of time."""
        return self.book.num_sources + self.book.num_tombstones + self.book.num_fetches

    def settle(self) -> None:
        """Use room that an event may have made; wake streams and reaper."""
        self.sending.wake()
        if not self._is_reaping and Node.num_remembered(self):
            self._is_reaping = True
            self.later(self.world.ticks(20, 120), self._reap)

    def _reap(self) -> bool | None:
        before = Node.num_remembered(self)
        self.book.expire()
        self._is_reaping = False
        return None if Node.num_remembered(self) < before else False

    def name_blocks(self, spec: Spec, block_ids: Sequence[int], num_tokens: int) -> None:
        """The KV of these first tokens is in these blocks: others may share it."""
        chain = spec.names(num_tokens)
        self.world.checks.holds(self, spec, block_ids[: len(chain)])
        self.blocks.name(chain, block_ids)

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
