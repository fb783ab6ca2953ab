"""Channels to other processes of the cluster: bounded, quick to notice a dead link."""

from collections.abc import Mapping
from itertools import count

import grpc.aio

from core.errors import BatonError
from core.member import is_address
from rpc.options import Options, Plane, client_options

MAX_PEERS = 1024
"""Addresses with open channels; they come from the registry, never from a request."""


class BadAddress(BatonError):
    """Not host:port of a process that could be called."""

    status = "INVALID_ARGUMENT"


def dial(
    address: str, options: Mapping[str, int] | None = None, *, plane: Plane = Plane.WORKER
) -> grpc.aio.Channel:
    """A channel to host:port; it connects with its first call. `options` win over the plane's."""
    if not is_address(address):
        raise BadAddress(f"not host:port: {len(address)} characters")
    merged = client_options(plane) | dict(options or {})
    return grpc.aio.insecure_channel(address, options=_as_list(merged))


def _as_list(options: Options) -> list[tuple[str, int]]:
    return list(options.items())


class ChannelPool:
    """Open channels by address, several real connections to each; called on one event loop.

    One HTTP/2 connection starves some of many streams opened at once, and one TCP connection is
    one core's work at either end: so calls take the connections in turn.
    """

    def __init__(self, num_per_address: int = 1, *, plane: Plane = Plane.WORKER) -> None:
        self._num_per_address = num_per_address
        self._plane = plane
        self._channels: dict[str, list[grpc.aio.Channel]] = {}
        self._turns = count()

    def get(self, address: str) -> grpc.aio.Channel:
        """The next connection to `address`. Raises BadAddress."""
        channels = self._channels.get(address)
        if channels is None:
            if len(self._channels) >= MAX_PEERS:
                raise BadAddress(f"more than {MAX_PEERS} peers; forget those that left")
            channels = [dial(address, plane=self._plane) for _ in range(self._num_per_address)]
            self._channels[address] = channels
        return channels[next(self._turns) % len(channels)]

    async def forget(self, address: str) -> None:
        """Close the connections to a peer that left; its calls end."""
        for channel in self._channels.pop(address, ()):
            await channel.close()

    async def close(self) -> None:
        """Close everything."""
        for address in list(self._channels):
            await self.forget(address)
