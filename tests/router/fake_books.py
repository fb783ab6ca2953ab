"""What a scripted instance remembers of requests: leases, jobs, and news not yet acknowledged."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from rpc.pb import types_pb2, workers_pb2


@dataclass(slots=True, eq=False)
class Lease:
    """KV that one prefill instance keeps."""

    fence: tuple[int, int]
    sampled: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    is_committed: bool = False

    @property
    def is_expected(self) -> bool:
        """A Fetch is here, its Prefill is not."""
        return self.fence[1] == 0


@dataclass(slots=True, eq=False)
class Job:
    """A request on the decode side."""

    work: workers_pb2.WorkRequest
    source_id: str
    fence: tuple[int, int]
    task: asyncio.Task[None] | None = None
    is_committed: bool = False
    retargeted: asyncio.Event = field(default_factory=asyncio.Event)


def fence_of(fence: types_pb2.Fence) -> tuple[int, int]:
    return fence.epoch, fence.attempt


class Outbox:
    """All news of one instance for one router; replayed until acknowledged."""

    def __init__(self) -> None:
        self.num_subscriptions = 0
        self.kept: list[workers_pb2.Output] = []
        self.num_sent = 0
        self.news = asyncio.Event()

    def put(self, output: workers_pb2.Output) -> None:
        self.kept.append(output)
        self.news.set()

    def ack(self, acks: Sequence[workers_pb2.Ack]) -> None:
        for ack in acks:
            for output in list(self.kept[: self.num_sent]):
                end = output.first_position + len(output.token_ids)
                read = bool(output.token_ids) and end <= ack.next_position
                is_end = bool(output.finish_reason or output.error_status)
                if output.handoff_id == ack.handoff_id and (ack.done or (read and not is_end)):
                    self.kept.remove(output)
                    self.num_sent -= 1
