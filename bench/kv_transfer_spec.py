"""What `bench kv_transfer` moves, how often, and the bars; fixed before anything was measured."""

from core.kv_layout import KvLayout

LAYOUT = KvLayout(num_layers=30, num_kv_heads=3, head_dim=64, dtype="float32", block_size=16)
"""SmolLM2-135M: 46,080 bytes per token."""
MIB = 1024 * 1024
LARGE_TOKENS = 64 * MIB // LAYOUT.bytes_per_token
"""64 MiB, less a part of one token."""
SMALL_TOKENS = MIB // LAYOUT.bytes_per_token
"""1 MiB, likewise."""
NUM_BLOCKS = 4 * LAYOUT.num_blocks(LARGE_TOKENS)
"""So that a request's blocks are spread, in random order, over more than any cache holds."""
SEGMENT_BYTES = 4 * MIB
"""Of the large transfer; the small one is one segment."""
ROUNDS = 9
QUICK_ROUNDS = 5
SEED = 5

BARS = {
    # carrier: (share of its baseline at 64 MiB, the baseline)
    "grpc": (0.6, "tcp"),
    "shm": (0.4, "memcpy"),
    "torchdist": (0.8, "gloo"),
}
SHM_SMALL_S = 0.001
"""1 MiB by shared memory, first gather to last scatter."""
