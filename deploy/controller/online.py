"""Planning from what the routers served of late."""

from rpc.pb import controller_pb2


class Online:
    """placeholder"""

    def state(self) -> controller_pb2.OnlineState | None:
        return None

    async def replan(self, *, dry_run: bool) -> controller_pb2.ReplanReply:
        return controller_pb2.ReplanReply()
