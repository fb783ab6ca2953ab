"""`bench router`: workloads, targets, seeds and bars, fixed before anything was measured."""

from dataclasses import dataclass

from bench.stub_engine import StepCost

SEED = 20_261_124


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """An answer is good when it keeps both; refused and failed ones are not."""

    ttft_s: float
    tpot_s: float


# --- placement: in process, no instances ---------------------------------------------------

NUM_PLACED_INSTANCES = 1000
PLACEMENT_PROMPT_TOKENS = 512
MAX_PLACEMENT_S = 200e-6
"""Median of placing one request on a pair, hits in 1,000 caches and forecasts included."""

# --- latency: one prefill, one decode, one router ------------------------------------------

LATENCY_RATE_PER_S = 50.0
LATENCY_PROMPT_TOKENS = 64
LATENCY_OUTPUT_TOKENS = 16
LATENCY_COST = StepCost(prefill_base_s=0.005, decode_base_s=0.01)
LATENCY_ROUND_S = 12.0
LATENCY_ROUNDS = 3
"""Each through the router, then the same arrivals straight to the prefill instance."""
MAX_ADDED_P50_S = 0.003
MAX_ADDED_P99_S = 0.010

# --- streams: tokens per core, then fairness ------------------------------------------------

STREAM_STEP_S = 0.02
NUM_STREAMS = 96
"""4,800 tokens a second: near what the bar asks of one core, so that coalescing has little part."""
STREAM_OUTPUT_TOKENS = 400
MIN_TOKENS_PER_CORE_S = 5000.0
MIN_HTTP_SHARE = 0.5
"""Of the tokens per core that gRPC has, through OpenAI's API: a chunk is 250 bytes of JSON."""
MAX_ITL_OVER_STEP_S = 0.020
NUM_FAIR_STREAMS = 256
FAIR_OUTPUT_TOKENS = 64
MAX_UNFAIRNESS = 2.0
"""Fastest over slowest stream, in tokens per second from first to last."""

# --- idle streams ----------------------------------------------------------------------------

NUM_IDLE_STREAMS = 1000
MAX_IDLE_KIB = 50.0

# --- overload ---------------------------------------------------------------------------------

OVERLOAD_COST = StepCost(
    prefill_base_s=0.01, prefill_token_s=0.0004, decode_base_s=0.02, answer_s=0.003
)
OVERLOAD_POOLS = (2, 3)
"""Prefill and decode instances: of a prompt of 200 tokens 22 a second, of answers of 32 tokens
about as many."""
OVERLOAD_PROMPT_TOKENS = 200
OVERLOAD_OUTPUT_TOKENS = 32
OVERLOAD_TARGETS = Targets(ttft_s=1.0, tpot_s=0.1)
OVERLOAD_TIMEOUT_S = 20.0
PEAK_RATES_PER_S = (16.0, 20.0, 24.0, 28.0)
"""Peak goodput is the best of these."""
PEAK_S = 12.0
OVERLOAD_FACTOR = 10.0
OVERLOAD_S = 30.0
AFTER_SHARE = 0.7
"""Of the peak rate, from the end of the overload on."""
AFTER_S = 15.0
SETTLE_S = 5.0
MIN_OVERLOAD_GOODPUT = 0.8
MIN_ATTAINMENT_AFTER = 0.9
"""Of those that arrive later than SETTLE_S after the overload."""

# --- quota ------------------------------------------------------------------------------------

NUM_QUOTA_ROUTERS = 3
QUOTA_TOKENS_PER_S = 2000.0
QUOTA_BURST_TOKENS = 2000.0
QUOTA_S = 20.0
QUOTA_PROMPT_TOKENS = 40
QUOTA_OUTPUT_TOKENS = 10
QUOTA_FACTOR = 3.0
"""Of the rate that it asks for."""
QUOTA_COST = StepCost(prefill_base_s=0.005, decode_base_s=0.01)
MAX_QUOTA_OVERSHOOT = 0.1

# --- policies ---------------------------------------------------------------------------------

POLICY_COSTS = (1.0, 1.0, 2.0)
"""Three prefill and three decode instances; the last of each is so many times slower."""
POLICY_COST = StepCost(
    prefill_base_s=0.01, prefill_token_s=0.0004, decode_base_s=0.02, answer_s=0.002
)
POLICY_RATE_PER_S = 15.0
POLICY_S = 15.0
POLICY_NUM_CHATS = 24
"""Each turn repeats what was said before: prompts share prefixes."""
POLICY_TURN_TOKENS = (32, 320)
"""A turn adds as many tokens as an exponential draw between these says."""
POLICY_MAX_PROMPT_TOKENS = 1500
POLICY_OUTPUT_TOKENS = (8, 64)
POLICY_TARGETS = Targets(ttft_s=0.5, tpot_s=0.06)
