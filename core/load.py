"""How busy an instance is, and whether its books add up: what it says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass

from core.blocks import BlockState


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """From the instance's own books at one moment."""

    num_prefilling: int = 0
    """Requests in the prefill queue or being prefilled."""
    num_pending_prompt_tokens: int = 0
    """Prompt tokens accepted and not yet computed."""
    num_incoming: int = 0
    """Handoffs waiting for room or for bytes on the decode side."""
    num_decoding: int = 0
    """Requests in the running decode batch."""
    num_context_tokens: int = 0
    """Tokens of context of all requests in the running decode batch."""
    num_free_blocks: int = 0
    """Blocks that could be allocated now, cached ones included."""
    num_blocks: int = 0
    """Blocks in all."""
    num_cached_blocks: int = 0
    """Of the free ones, those that hold a prefix nobody uses now."""
    num_swapped: int = 0
    """Answers whose KV waits in host memory."""
    num_queried_tokens: int = 0
    """Prompt tokens looked up in the prefix cache since the start."""
    num_hit_tokens: int = 0
    """Of them, those found there."""
    draining: bool = False
    """Takes no new work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Integrity:
    """The books of one instance at one moment; while idle every count but the last four is 0."""

    blocks: Mapping[BlockState, int]
    num_leases: int = 0
    """Held for decode instances."""
    num_incoming: int = 0
    """Handoffs known on the decode side."""
    num_prefills: int = 0
    """Requests known to the prefill side."""
    num_decodes: int = 0
    """Requests known to the decode side."""
    num_fetches: int = 0
    """Open Fetch streams, both directions."""
    num_tasks: int = 0
    """Tasks on the event loop beyond those that live as long as the process."""
    problem: str = ""
    """What is wrong; empty when all sums are right."""
    loop_lag_p99_s: float = 0.0
    """Event loop lag since the last report."""
    num_steps: int = 0
    """Since the start."""
    cpu_s: float = 0.0
    """Processor time of this process since its start."""
    pid: int = 0
