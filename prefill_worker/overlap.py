"""In how many layer groups a prompt's KV leaves: decided once, when its prefill starts."""

from collections.abc import Sequence
from dataclasses import dataclass

from core.config import HandoffConfig
from core.kv_layout import KvLayout, layer_groups
from kv_transfer.moving import MovingCosts
from policy.overlap import LAYERWISE, WHOLE, ChunkKv, OverlapCosts, num_groups
from prefill_worker.costs import Costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """The one decision, from what this instance measured of computing and of sending."""

    layout: KvLayout
    handoff: HandoffConfig
    costs: Costs
    moving: MovingCosts

    def groups(self, num_chunk_tokens: int) -> Sequence[range]:
        """The layer groups for a prompt whose chunks are of so many tokens."""
        return layer_groups(self.layout.num_layers, self._num_groups(num_chunk_tokens))

    def _num_groups(self, num_chunk_tokens: int) -> int:
        num_layers = self.layout.num_layers
        if self.handoff.overlap in (WHOLE, LAYERWISE):
            return 1 if self.handoff.overlap == WHOLE else num_layers
        costs = OverlapCosts(
            layer_s=self.costs.compute_s(num_chunk_tokens) / num_layers,
            bytes_per_s=self.moving.bytes_per_s,
            segment_s=self.moving.segment_s,
        )
        chunk = ChunkKv(
            num_layers=num_layers,
            num_bytes=num_chunk_tokens * self.layout.bytes_per_token,
            max_segment_bytes=self.handoff.max_segment_bytes,
        )
        return num_groups(costs, chunk, max_groups=num_layers)
