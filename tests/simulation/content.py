"""What the simulated KV holds: one number per (tokens so far, attempt, layer), so that mixing
shows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from core.ids import HandoffId
from core.kv_layout import KvLayout, KvRange
from core.prefix import KEY_BYTES, BlockHash, PrefixHasher
from core.request import Fence

LAYOUT = KvLayout(num_layers=2, num_kv_heads=1, head_dim=1, dtype="float32", block_size=2)
POISON = -1
"""What a block holds when it is handed out."""
TENANT = "t"
HASHER = PrefixHasher(b"k" * KEY_BYTES, LAYOUT.block_size)
_MASK_64 = 2**64 - 1
_MASK_40 = 2**40 - 1
_SALT_BITS = 16
_MIX = 0x9E3779B97F4A7C15


@dataclass(slots=True, eq=False)
class Spec:
    """What a client asks for."""

    index: int
    handoff_id: HandoffId
    prompt: tuple[int, ...]
    num_output_tokens: int
    num_wanted_tokens: int
    """Fewer than the workers' limit when a stop string comes first, which only the router sees."""
    deadline_s: float
    after: int | None = None
    """The request whose prompt and answer this prompt begins with."""
    tokens: tuple[int, ...] = field(init=False)
    """The prompt and the whole answer."""
    contents: list[int] = field(init=False)
    """By token: what its KV is made of, which is that token and all before it."""
    chain: list[BlockHash] = field(init=False)
    """Names of the full blocks of `tokens`."""

    def __post_init__(self) -> None:
        answer = tuple(self.token_at(i) for i in range(self.num_output_tokens))
        self.tokens = self.prompt + answer
        self.contents = [0] * len(self.tokens)
        content = 0
        for i, token in enumerate(self.tokens):
            content = self.contents[i] = hash((content, token)) & _MASK_40
        self.chain = HASHER.extend(TENANT, (), self.tokens)

    @property
    def num_prompt_tokens(self) -> int:
        """Without forced tokens."""
        return len(self.prompt)

    def names(self, num_tokens: int) -> list[BlockHash]:
        """Of the full blocks of the first tokens."""
        return self.chain[: num_tokens // LAYOUT.block_size]

    def token_at(self, position: int) -> int:
        """The output token every attempt must produce there."""
        return self.index * 1000 + position

    def salt(self, fence: Fence) -> int:
        """Tells the KV of one prefill attempt from that of all others."""
        return (self.index * 8 + fence.epoch) * 64 + fence.attempt

    def __str__(self) -> str:
        return str(self.handoff_id)


def cells(spec: Spec, salt: int, piece: KvRange) -> list[int]:
    """The KV of a rectangle, [layer][token], as one attempt computes it."""
    contents = spec.contents
    return [
        (contents[token] * 8 + layer) << _SALT_BITS | salt
        for layer in piece.layers
        for token in piece.tokens
    ]


def meanings(values: Sequence[int]) -> list[int]:
    """What KV is of, whoever computed it."""
    return [value >> _SALT_BITS for value in values]


def digest(values: Sequence[int], piece: KvRange) -> int:
    """Sum of hashes keyed by (layer, token): any cut of the KV gives the same total."""
    keys = [layer * 4096 + token for layer in piece.layers for token in piece.tokens]
    total = sum([(v ^ (k * 7919)) * _MIX ^ k for v, k in zip(values, keys, strict=True)])
    return total & _MASK_64


def whole(num_tokens: int, num_cached_tokens: int = 0) -> KvRange:
    """All layers of the first tokens, less those that are cached."""
    return KvRange(range(LAYOUT.num_layers), range(num_cached_tokens, num_tokens))


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

    def scatter(self, block_ids: tuple[int, ...], piece: KvRange, values: Sequence[int]) -> None:
        """Write a rectangle."""
        size, first = LAYOUT.block_size, piece.tokens.start // LAYOUT.block_size
        i = 0
        for layer in piece.layers:
            for token in piece.tokens:
                block = self._blocks[block_ids[token // size - first]]
                block[layer * size + token % size] = values[i]
                i += 1
