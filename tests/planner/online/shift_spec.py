"""What the replay of shifts is made of."""

from core.slo import Slo
from planner.online.ground import Sizes

MODEL, GPU = "llama-3.1-8b", "h100-80g-sxm"
START = Sizes(prefill=7, decode=1)
"""What the offline planner makes of the coding trace on eight GPUs."""
MIN_INSTANCES, MAX_INSTANCES = 8, 12
"""Never fewer than at the start: the simulated cluster has no drain."""
SLO, TARGET = Slo(ttft_s=1.0, tpot_s=0.03), 0.9

COMPRESSION = 8.0
"""An hour of either trace of Azure (November 2023) takes 7.5 minutes; lengths are as recorded."""
SEGMENT_S = 900.0
"""Two hours of the trace; after its last request it begins anew."""
SEGMENTS = (
    # id                preset        times as fast, beside COMPRESSION
    ("coding", "azure-code", 1.0),
    ("twice the rate", "azure-code", 2.0),
    ("conversation", "azure-conv", 1.0),
    ("coding again", "azure-code", 1.0),
)
"""The true shifts are at 900, 1,800 and 2,700 s."""

LOOK_S = 10.0
WINDOW_S = 240.0
"""Half an hour of the trace: the coding trace's bursts take minutes of it."""
COOL_DOWN_S = 120.0
MAX_LOOKS = 60
"""After a shift, until its layout is in force: two windows and a half."""

ROLE_CHANGE_S = 2.0
"""From the decision: a call to each instance, and the steps that run."""
LOAD_S = 60.0
"""Of an instance that is added: a process, and 16 GB of weights from a local disk."""
SEED = 0
