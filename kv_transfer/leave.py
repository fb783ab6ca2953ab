"""What one Fetch showed to be let in, said again by the calls that follow it."""

from rpc.pb import kv_transfer_pb2 as pb


def leave_of(opening: pb.FetchOpen) -> pb.Leave:
    """The leave that an opening shows."""
    return pb.Leave(
        fetcher_id=opening.fetcher_id,
        capability=opening.capability,
        is_of_prefix=opening.HasField("prefix"),
    )
