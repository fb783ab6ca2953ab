"""Fleets for tests of policies: rows by what differs from an idle one."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from core.limits import DEFAULT_MAX_QUEUED
from policy.latency import LatencyModel
from policy.placement import Criteria
from policy.table import Floats, Links, Table, Weights, empty_table

P, D, M, R = 0, 1, 2, 3
"""Codes of the roles."""

IDLE = {
    "alive": True,
    "num_free_blocks": 100,
    "num_blocks": 100,
    "block_size": 16,
    "prefill_scale": 1.0,
    "decode_scale": 1.0,
}


def row(role: int, **values: Any) -> dict[str, Any]:
    return {"role": role, **values}


def table(*rows: dict[str, Any]) -> Table:
    made = empty_table(len(rows))
    for i, values in enumerate(rows):
        for name, value in {**IDLE, **values}.items():
            getattr(made, name)[i] = value
    return made


def array(*values: float) -> Floats:
    return np.array(values, dtype=np.float64)


MODEL = LatencyModel(
    prefill=array(0.01, 0.001, 1e-7),
    batches=array(1, 64),
    batch_s=array(0.02, 0.2),
    contexts=array(0, 65_536),
    context_s=array(0.0, 0.2),
    reach=np.zeros((4, 2)),
)
LINKS = Links(same_host_s_per_token=1e-6, other_host_s_per_token=1e-4, handoff_s=0.005)


def criteria(policy: str, **values: Any) -> Criteria:
    return Criteria(policy=policy, model=MODEL, links=LINKS, weights=Weights(), **values)


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.integers(0, 3),
            "fingerprint": st.integers(0, 1),
            "host": st.integers(0, 1),
            "alive": st.booleans(),
            "draining": st.booleans(),
            "helps": st.booleans(),
            "num_prefilling": st.sampled_from([0, 3, DEFAULT_MAX_QUEUED]),
            "num_pending_prompt_tokens": st.integers(0, 5000),
            "num_incoming": st.sampled_from([0, 3, DEFAULT_MAX_QUEUED]),
            "num_decoding": st.integers(0, 64),
            "num_context_tokens": st.integers(0, 100_000),
            "num_free_blocks": st.integers(0, 100),
            "prefill_scale": st.sampled_from([0.5, 1.0, 3.0]),
            "decode_scale": st.sampled_from([0.5, 1.0, 3.0]),
        }
    ),
    min_size=1,
    max_size=8,
)
