"""What `bench planner` simulates, and the bars; fixed before anything was measured."""

MODEL = "opt-13b"
"""With DistServe's published parameters: 2 GPUs read prompts, 1 writes answers."""
PLACEMENT = "shortest_queue"
SEED = 8

PLAIN_REQUESTS = 300_000
PLAIN_RATE_PER_S = 3.0
"""One instance per phase, ShareGPT's lengths, Poisson, memory and links without limit."""
MIN_PLAIN_PER_S = 1_000_000

FULL_REQUESTS = 100_000
FULL_PAIRS = 4
"""Instances of each phase; answers bound by the published KV capacity."""
FULL_RATE_PER_S = 8.0
FULL_CACHE_TOKENS = 65_536
FULL_PREFIXES = 256
"""Prompts begin with one of so many texts, of half their length..."""
FULL_BLOCK_TOKENS = 64
"""...counted in blocks of so many tokens; the rest of a prompt is its own."""
FULL_HOST_BYTES_PER_S = 25e9 / 8
"""Of each instance's host, shared by its transfers, layer by layer from 512 tokens on."""
LAYERWISE_FROM_TOKENS = 512
MIN_FULL_PER_S = 200_000

LARGE_REQUESTS = 1_000_000
LARGE_PREFILL, LARGE_DECODE = 450, 550
LARGE_RATE_PER_S = 2_500.0
"""The mix of Azure's conversation trace, drawn anew."""
MAX_LARGE_S = 60.0
MAX_LARGE_BYTES = 4e9

LINEAR_REQUESTS = (10_000, 100_000, 1_000_000)
MAX_LINEAR_RATIO = 1.5
"""Time per request of the most over that of the fewest: beyond it caches, not the algorithm."""

NINE_MAX_GPUS = 4
NINE_SLO_S = (0.2, 0.1)
NINE_TARGET = 0.9
MAX_NINE_S = 1.0
MAX_NINE_STEADY_S = 20.0
PUBLISHED_NINE_S = 63.0
"""CPU seconds of the published search for the same nine configurations."""

LAYOUTS_MODEL, LAYOUTS_GPU = "llama-3.1-70b", "h100-80g-sxm"
LAYOUTS_HOSTS, LAYOUTS_GPUS_PER_HOST = 4, 8
LAYOUTS_SLO_S = (0.5, 0.05)
LAYOUTS_THREADS = 2
MAX_LAYOUTS_S = 60.0

ROUNDS = 3
STEPWISE_REQUESTS = 30_000
"""The same as plain, step by step: what leaps save."""
