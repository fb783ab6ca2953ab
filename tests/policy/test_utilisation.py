"""How full instances are, and how many would do: as whoever scales a pool reads it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.profile import DecodeFit, PrefillFit
from policy.latency import model_of
from policy.table import Table, empty_table
from policy.utilisation import TARGET, fullness, utilisation, wanted_instances

MODEL = model_of(
    PrefillFit(base_s=0.0, per_token_s=0.001, per_pair_s=0.0),
    DecodeFit(batches=(1, 2), batch_s=(0.01, 0.01), num_context_tokens=(0, 1), context_s=(0, 0)),
    points=(),
)


def table(**columns: list[int]) -> Table:
    made = empty_table(len(next(iter(columns.values()))))
    made.prefill_scale[:] = 1.0
    made.num_blocks[:] = made.num_free_blocks[:] = 100
    for name, values in columns.items():
        getattr(made, name)[:] = values
    return made


CASES = [
    # id                           columns                                     fullness
    ("idle", {"num_decoding": [0]}, [0.0]),
    ("a second of prompts", {"num_pending_prompt_tokens": [1000]}, [0.5]),
    ("more than its target", {"num_pending_prompt_tokens": [5000]}, [2.5]),
    ("answers", {"num_decoding": [16]}, [0.5]),
    ("answers to come count", {"num_decoding": [16], "num_incoming": [32]}, [1.5]),
    ("blocks", {"num_free_blocks": [25, 100]}, [0.75, 0.0]),
    ("the largest counts", {"num_free_blocks": [90, 10], "num_decoding": [16, 16]}, [0.5, 0.9]),
    ("nobody's row", {"num_blocks": [0], "num_free_blocks": [0]}, [1.0]),
]


@pytest.mark.parametrize(("columns", "full"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_fullness(columns: dict[str, list[int]], full: list[float]) -> None:
    got = fullness(MODEL, table(**columns), prefill_target_s=2.0, max_decoding=32)
    assert got.tolist() == pytest.approx(full)


POOLS = [
    # id               fullness          in the pool              share  wanted
    ("no instance", [0.5], [False], 0.0, 1),
    ("idle", [0.0, 0.0], [True, True], 0.0, 1),
    ("just right", [0.7, 0.7], [True, True], 0.7, 2),
    ("one would do", [0.2, 0.4], [True, True], 0.3, 1),
    ("too few", [1.0, 1.1], [True, True], 1.0, 3),
    ("waiting counts", [5.0], [True], 1.0, 8),
    ("others do not", [0.5, 9.0], [True, False], 0.5, 1),
]


@pytest.mark.parametrize(
    ("full", "pool", "share", "wanted"), [c[1:] for c in POOLS], ids=[c[0] for c in POOLS]
)
def test_a_pool(full: list[float], pool: list[bool], share: float, wanted: int) -> None:
    columns = np.array(full), np.array(pool)
    assert utilisation(*columns) == pytest.approx(share)
    assert wanted_instances(*columns) == wanted


@given(st.lists(st.floats(0.0, 3.0), min_size=1, max_size=20))
def test_so_many_would_be_used_to_the_target_and_one_less_would_not(full: list[float]) -> None:
    work = sum(full)
    wanted = wanted_instances(np.array(full), np.ones(len(full), bool))
    assert work / wanted <= TARGET + 1e-6
    assert wanted == 1 or work / (wanted - 1) > TARGET - 1e-6
