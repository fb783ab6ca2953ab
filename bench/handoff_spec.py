"""What `bench handoff` asks, how often, and the bars; fixed before anything was measured."""

PROMPT_TOKENS = (64, 128, 256, 512, 1024)
ROUNDS = 12
QUICK_ROUNDS = 4
SHORT_ROUNDS = 40
"""At 64 tokens, where the choices are compared: they differ by milliseconds."""
QUICK_SHORT_ROUNDS = 12
WARMUPS = 3
"""Of each length, before anything counts: what is chosen is chosen from what was measured."""
ANSWER_TOKENS = 4
SEED = 5

BAR_FROM_TOKENS = 256
MAX_EXPOSED_SHARE = 0.10
"""Exposed transfer over prefill time, from that length on."""
SHORT_TOKENS = 64
"""Where adaptive must not be slower than one piece: medians of the first gap, their ratio at most
1 and the noise, which is what one piece differs from one piece by in the same rounds."""

NUM_TURNS = 5
FIRST_TURN_TOKENS = 200
TURN_TOKENS = 60
"""That a person adds."""
TURN_ANSWER_TOKENS = 40

INT8_PROMPTS = 64
QUICK_INT8_PROMPTS = 8
INT8_PROMPT_TOKENS = 64
INT8_ANSWER_TOKENS = 32
