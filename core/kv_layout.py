"""How the KV of a request is shaped, and how it is cut for transfer."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from core.model_spec import DTYPE_BYTES, ModelSpec

CARRIERS = ("shm", "torchdist", "grpc")
"""What moves payloads."""
UNBUILT_CARRIERS = ("cuda_ipc", "nccl", "nixl")
"""What people will look for: KV is gathered to host memory so far."""
STORED = "stored"
WIRE_FORMATS = (STORED, "int8")
"""How KV is written on the wire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """KV of one rank: [layer][K, V][token][head][element], elements of `dtype`."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    block_size: int
    """Tokens per block."""

    @classmethod
    def of(cls, spec: ModelSpec, block_size: int) -> "KvLayout":
        """The layout of a whole model on one rank."""
        return cls(
            num_layers=spec.num_layers,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            dtype=spec.dtype,
            block_size=block_size,
        )

    @property
    def layer_bytes_per_token(self) -> int:
        """Bytes of K and V of one token in one layer."""
        return 2 * self.num_kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def bytes_per_token(self) -> int:
        """Bytes of K and V of one token in all layers."""
        return self.num_layers * self.layer_bytes_per_token

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)


@dataclass(frozen=True, slots=True)
class KvRange:
    """A rectangle of a request's KV: some layers of some tokens, all heads of the rank."""

    layers: range
    tokens: range

    def num_bytes(self, layout: KvLayout) -> int:
        """Payload size."""
        return len(self.layers) * len(self.tokens) * layout.layer_bytes_per_token


def layer_groups(num_layers: int, num_groups: int) -> list[range]:
    """Cut the layers into so many groups of as equal a size as can be, the smaller ones last:
    what is exposed of a transfer is its end."""
    size, num_larger = divmod(num_layers, num_groups)
    stops = [(n + 1) * size + min(n + 1, num_larger) for n in range(num_groups)]
    return [range(start, stop) for start, stop in pairwise((0, *stops))]


def cut_tokens(tokens: range, layers: range, layout: KvLayout, max_bytes: int) -> Iterator[range]:
    """Cut `tokens` so that no piece over `layers` is above `max_bytes` (at least one token): into
    as few pieces as can be, equal ones, since a small rest costs as much as a whole piece."""
    per_token = len(layers) * layout.layer_bytes_per_token
    largest = max(1, max_bytes // per_token)
    num_pieces = max(1, -(-len(tokens) // largest))
    step = max(1, -(-len(tokens) // num_pieces))
    for start in range(tokens.start, tokens.stop, step):
        yield range(start, min(start + step, tokens.stop))
