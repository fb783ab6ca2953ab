"""What goes wrong on a schedule: crashes, broken streams, cancels, router deaths."""

from typing import TYPE_CHECKING

from tests.simulation.decode_node import DecodeNode
from tests.simulation.network import Network
from tests.simulation.prefill_node import PrefillNode
from tests.simulation.router_model import Router
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.asking import Asked
    from tests.simulation.streams import Stream

HORIZON = 500
"""Ticks within which faults begin: as long as a typical schedule."""


class Faults:
    """Plans all faults of one seed at its start."""

    def __init__(
        self,
        world: World,
        network: Network,
        router: Router,
        prefills: list[PrefillNode],
        decodes: list[DecodeNode],
    ) -> None:
        self._world = world
        self._network = network
        self._router = router
        self._prefills = prefills
        self._decodes = decodes
        for _ in range(world.profile.num_crashes):
            world.after(world.ticks(10, HORIZON), self._crash)
        for _ in range(world.profile.num_breaks):
            world.after(world.ticks(10, HORIZON), self._break)

    def __str__(self) -> str:
        return "faults"

    def _crash(self) -> bool | None:
        """An instance loses everything; others find out when they do."""
        world = self._world
        nodes: list[PrefillNode | DecodeNode] = [*self._prefills, *self._decodes]
        node = world.rng.choice(nodes)
        if not node.is_alive:
            return False
        self._break_streams_to(node)
        self._break_streams_from(node)
        node.crash()
        world.after(world.ticks(10, 200), self._router.node_down, node)
        world.after(world.ticks(201, 500), self._restart, node)
        return None

    def _restart(self, node: PrefillNode | DecodeNode) -> None:
        node.restart()
        self._world.after(self._world.ticks(1, 40), self._router.node_up, node)

    def _break_streams_to(self, node: PrefillNode | DecodeNode) -> None:
        for stream in node.sending.open_streams():
            self._network.send(stream.peer, stream.peer.fetching.on_lost, stream.stream_id)

    def _break_streams_from(self, node: PrefillNode | DecodeNode) -> None:
        for stream in node.fetching.open_streams():
            self._network.send(stream.peer, stream.peer.sending.on_lost, stream.stream_id)

    def _break(self) -> bool | None:
        """One connection ends; both ends notice."""
        nodes: list[PrefillNode | DecodeNode] = [*self._prefills, *self._decodes]
        node = self._world.rng.choice(nodes)
        streams: list[Stream | Asked] = [*node.fetching.open_streams()]
        if not streams or not node.is_alive:
            return False
        stream = self._world.rng.choice(streams)
        self._network.send(node, node.fetching.on_lost, stream.stream_id)
        self._network.send(stream.peer, stream.peer.sending.on_lost, stream.stream_id)
        return None
