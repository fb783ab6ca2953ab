"""How many segments a chunk's KV is best sent in: layer by layer, all at once, or between."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapCosts:
    """What was measured of computing and of moving KV."""

    layer_s: float
    """To compute one layer of the chunk."""
    bytes_per_s: float
    """From the source's blocks into the sink's, once a segment flows."""
    segment_s: float
    """That one more segment costs, whatever its size."""


def exposed_s(costs: OverlapCosts, *, num_bytes: int, num_layers: int, num_groups: int) -> float:
    """How long after the last layer the last of `num_groups` equal segments has arrived.

    Splitwise's layer-wise transfer (section 4.3) as a two-stage pipeline: a group can leave when
    its layers are computed and the group before it has left.
    """
    compute_s = costs.layer_s * num_layers
    move_s = costs.segment_s + num_bytes / num_groups / costs.bytes_per_s
    # Bound by the link, all groups but the first queue behind each other.
    backlog_s = compute_s / num_groups + num_groups * move_s - compute_s
    return max(move_s, backlog_s)


def num_groups(costs: OverlapCosts, *, num_bytes: int, num_layers: int, max_groups: int) -> int:
    """The number of layer groups that costs least, at most `max_groups`.

    A segment's fixed cost is paid even where it is hidden: somebody's processor spends it, and on
    a host without a spare one the prefill waits for it. So the sum of what is exposed and of what
    the further segments cost is smallest at the answer: short prompts go in one piece.
    """

    def cost_s(groups: int) -> float:
        exposed = exposed_s(costs, num_bytes=num_bytes, num_layers=num_layers, num_groups=groups)
        return exposed + (groups - 1) * costs.segment_s

    return min(range(1, max(1, min(num_layers, max_groups)) + 1), key=cost_s)
