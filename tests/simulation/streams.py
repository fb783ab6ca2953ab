"""A Fetch as its sink knows it, and what of a handoff no late frame may change."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.request import Fence

if TYPE_CHECKING:
    from tests.simulation.decode_node import Job
    from tests.simulation.prefill_node import PrefillNode


@dataclass(slots=True, eq=False)
class Stream:
    """One Fetch, also after it was replaced."""

    stream_id: int
    fence: Fence
    job: "Job"
    peer: "PrefillNode"

    def __str__(self) -> str:
        return f"stream{self.stream_id}:{self.job}"


def snapshot(job: "Job") -> tuple[object, ...]:
    """All that a frame could change."""
    sink = job.sink
    return (
        sink.state,
        sink.fence,
        sink.block_ids,
        sink.num_tokens,
        sink.num_cached_tokens,
        sink.num_refetches,
        sink.num_commits,
        sink.expected_digest,
        len(job.writing),
    )
