"""How many segments a chunk's KV is best sent in: layer by layer, all at once, or between."""

from dataclasses import dataclass

ADAPTIVE, WHOLE, LAYERWISE = "adaptive", "whole", "layerwise"


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapCosts:
    """What was measured of computing and of moving KV."""

    layer_s: float
    """To compute one layer of the chunk; 0 while nothing is known of it."""
    bytes_per_s: float
    """From the source's blocks into the sink's, once a segment flows."""
    segment_s: float
    """That one more segment costs, whatever its size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkKv:
    """What a chunk leaves behind: the same in every layer."""

    num_layers: int
    num_bytes: int
    """Of all layers."""
    max_segment_bytes: int
    """A group above it goes in several segments."""

    def group_bytes(self, num_groups: int) -> float:
        """Of the largest of `num_groups` groups of whole layers."""
        return self.num_bytes * -(-self.num_layers // num_groups) / self.num_layers

    def group_segments(self, num_groups: int) -> int:
        """That the largest group takes."""
        return max(1, int(-(-self.group_bytes(num_groups) // self.max_segment_bytes)))


def exposed_s(costs: OverlapCosts, chunk: ChunkKv, num_groups: int) -> float:
    """How long after the last layer the last of `num_groups` equal groups has arrived.

    Splitwise's layer-wise transfer (section 4.3) as a two-stage pipeline: a group can leave when
    its layers are computed and the group before it has left.
    """
    compute_s = costs.layer_s * chunk.num_layers
    fixed_s = chunk.group_segments(num_groups) * costs.segment_s
    move_s = fixed_s + chunk.group_bytes(num_groups) / costs.bytes_per_s
    # Bound by the link, all groups but the first queue behind each other.
    backlog_s = compute_s / num_groups + num_groups * move_s - compute_s
    return max(move_s, backlog_s)


def cost_s(costs: OverlapCosts, chunk: ChunkKv, num_groups: int) -> float:
    """What is exposed, and the fixed cost of every segment.

    That is paid even where it is hidden: somebody's processor spends it, and on a host without a
    spare one the prefill waits for it. So short prompts go in one piece.
    """
    num_segments = num_groups * chunk.group_segments(num_groups)
    return exposed_s(costs, chunk, num_groups) + num_segments * costs.segment_s


def num_groups(costs: OverlapCosts, chunk: ChunkKv, *, max_groups: int) -> int:
    """The number of layer groups that costs least, at most `max_groups`; the fewest of equals."""
    choices = range(1, max(1, min(chunk.num_layers, max_groups)) + 1)
    return min(choices, key=lambda groups: cost_s(costs, chunk, groups))
