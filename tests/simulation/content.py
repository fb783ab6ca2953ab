"""What the simulated KV holds: one number per (attempt, layer, token), so that mixing shows."""

from dataclasses import dataclass

from core.ids import HandoffId
from core.kv_layout import KvLayout, KvRange
from core.request import Fence

LAYOUT = KvLayout(num_layers=2, num_kv_heads=1, head_dim=1, dtype="float32", block_size=2)
POISON = -1
"""What a block holds when it is handed out."""
_MASK_64 = 2**64 - 1
_MIX = 0x9E3779B97F4A7C15


@dataclass(slots=True, eq=False)
class Spec:
    """What a client asks for."""

    index: int
    handoff_id: HandoffId
    num_prompt_tokens: int
    num_output_tokens: int
    num_wanted_tokens: int
    """Fewer than the workers' limit when a stop string comes first, which only the router sees."""
    deadline_s: float

    def token_at(self, position: int) -> int:
        """The output token every attempt must produce there."""
        return self.index * 1000 + position

    def salt(self, fence: Fence) -> int:
        """Tells the KV of one prefill attempt from that of all others."""
        return (self.index * 8 + fence.epoch) * 64 + fence.attempt

    def __str__(self) -> str:
        return str(self.handoff_id)


def cell(salt: int, layer: int, token: int) -> int:
    """The KV of one token in one layer."""
    return (salt * 8 + layer) * 4096 + token


def cells(salt: int, piece: KvRange) -> list[int]:
    """The KV of a rectangle, [layer][token]."""
    return [cell(salt, layer, token) for layer in piece.layers for token in piece.tokens]


def digest(values: list[int], piece: KvRange) -> int:
    """Sum of hashes keyed by (layer, token): any cut of the KV gives the same total."""
    keys = [layer * 4096 + token for layer in piece.layers for token in piece.tokens]
    total = sum([(v ^ (k * 7919)) * _MIX ^ k for v, k in zip(values, keys, strict=True)])
    return total & _MASK_64


def whole(num_tokens: int) -> KvRange:
    """All layers of the first tokens."""
    return KvRange(range(LAYOUT.num_layers), range(num_tokens))


class Memory:
    """The KV tensors of one instance."""

    def __init__(self, num_blocks: int) -> None:
        self._blocks = [[POISON] * (LAYOUT.num_layers * LAYOUT.block_size)] * num_blocks

    def poison(self, block_ids: tuple[int, ...]) -> None:
        """What a new owner finds is nobody's KV."""
        for block_id in block_ids:
            self._blocks[block_id] = [POISON] * (LAYOUT.num_layers * LAYOUT.block_size)

    def gather(self, block_ids: tuple[int, ...], piece: KvRange) -> list[int]:
        """Read a rectangle; `block_ids` begin with the block of its first token."""
        size, first = LAYOUT.block_size, piece.tokens.start // LAYOUT.block_size
        blocks = self._blocks
        return [
            blocks[block_ids[token // size - first]][layer * size + token % size]
            for layer in piece.layers
            for token in piece.tokens
        ]

    def scatter(self, block_ids: tuple[int, ...], piece: KvRange, values: list[int]) -> None:
        """Write a rectangle."""
        size, first = LAYOUT.block_size, piece.tokens.start // LAYOUT.block_size
        i = 0
        for layer in piece.layers:
            for token in piece.tokens:
                block = self._blocks[block_ids[token // size - first]]
                block[layer * size + token % size] = values[i]
                i += 1
