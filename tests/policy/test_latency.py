"""The latency model: published figures, planted coefficients, and laws."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.latency import (
    Floats,
    LatencyModel,
    decode_s,
    is_extrapolated,
    latency_model,
    prefill_s,
    step_s,
    table_s,
)
from policy.latency_fit import (
    find_l_m,
    fit_decode,
    fit_prefill,
    fit_relative,
    nonnegative_least_squares,
    relative_errors,
)
from tests.core.profiles import condition


def array(*values: float) -> Floats:
    return np.array(values, dtype=np.float64)


MODEL = LatencyModel(
    prefill=array(0.04, 0.0025, 1e-6),
    batches=array(1, 2, 8),
    batch_s=array(0.04, 0.05, 0.08),
    contexts=array(0, 1000, 2000),
    context_s=array(0.0, 0.01, 0.04),
    reach=array(16, 1024, 136, 524_800, 1, 8, 64, 2000).reshape(4, 2),
)

OPT_13B = MODEL._replace(
    # DistServe's fit for one A100-80G, its c · Σl² in pairs: l² is 2 · pairs − l.
    prefill=array(19.1025, 0.101912 - 7.1223e-6, 2 * 7.1223e-6) / 1e3,
    batches=array(0, 94),
    batch_s=array(19.9347, 19.9347 + 94 * 0.038507) / 1e3,
    contexts=array(0, 1),
    context_s=array(0, 6.2694e-4) / 1e3,
)
PUBLISHED = [
    # id                  seconds                                                   ms
    ("prefill 512", prefill_s(OPT_13B, 512, 512 * 513 / 2), 73.149),
    ("prefill 2 x 512", prefill_s(OPT_13B, 1024, 512 * 513), 127.195),
    ("prefill 2047", prefill_s(OPT_13B, 2047, 2047 * 2048 / 2), 257.561),
    ("decode 1 at 512", decode_s(OPT_13B, 1, 512), 20.294),
    ("decode 64 at 512", decode_s(OPT_13B, 64, 64 * 512), 42.943),
]


@pytest.mark.parametrize(
    ("got_s", "want_ms"), [c[1:] for c in PUBLISHED], ids=[c[0] for c in PUBLISHED]
)
def test_distserve_is_a_case_of_it(got_s: float, want_ms: float) -> None:
    assert got_s * 1e3 == pytest.approx(want_ms, abs=1e-3)


STEPS = [
    # id                           prompt tokens, pairs, batch, context      seconds
    ("nothing", (0, 0, 0, 0), 0.0),
    ("prefill", (100, 5050, 0, 0), 0.04 + 0.25 + 0.00505),
    ("decode at a knot", (0, 0, 2, 1000), 0.05 + 0.01),
    ("decode between knots", (0, 0, 5, 1500), 0.065 + 0.025),
    ("decode beyond the knots", (0, 0, 14, 3000), 0.11 + 0.07),
    ("mixed: the base once", (100, 5050, 2, 1000), 0.04 + 0.25 + 0.00505 + 0.05 + 0.01 - 0.04),
]


@pytest.mark.parametrize(("step", "want_s"), [c[1:] for c in STEPS], ids=[c[0] for c in STEPS])
def test_step(step: tuple[float, float, float, float], want_s: float) -> None:
    assert step_s(MODEL, *step) == pytest.approx(want_s)
    columns = [np.array([value, value]) for value in step]
    assert step_s(MODEL, *columns) == pytest.approx([want_s, want_s])


count = st.integers(0, 5000)


@given(tokens=count, pairs=count, batch=count, context=count, more=count)
def test_more_work_never_takes_less(
    tokens: int, pairs: int, batch: int, context: int, more: int
) -> None:
    work = (tokens, pairs, batch, context)
    for i in range(4):
        grown = tuple(value + more * (i == j) for j, value in enumerate(work))
        assert step_s(MODEL, *grown) >= step_s(MODEL, *work)


@given(tokens=st.integers(1, 5000), batch=st.integers(1, 100))
def test_a_mixed_step_is_cheaper_than_two(tokens: int, batch: int) -> None:
    mixed = step_s(MODEL, tokens, tokens, batch, batch)
    apart = prefill_s(MODEL, tokens, tokens), decode_s(MODEL, batch, batch)
    assert max(apart) <= mixed < sum(apart)


REACHES = [
    ("inside", (64, 2080, 4, 500), False),
    ("prefill alone", (64, 2080, 0, 0), False),
    ("decode alone", (0, 0, 4, 500), False),
    ("more tokens", (2048, 2080, 0, 0), True),
    ("more pairs", (64, 10**6, 0, 0), True),
    ("fewer tokens", (8, 136, 0, 0), True),
    ("larger batch", (0, 0, 9, 500), True),
    ("more context", (0, 0, 8, 2001), True),
    ("half of it outside", (64, 2080, 9, 500), True),
]


@pytest.mark.parametrize(("step", "want"), [c[1:] for c in REACHES], ids=[c[0] for c in REACHES])
def test_extrapolation_is_told(step: tuple[int, int, int, int], want: bool) -> None:
    assert is_extrapolated(MODEL, *step) is want


def test_a_profile_s_condition_becomes_a_model() -> None:
    model = latency_model(condition())
    assert prefill_s(model, 100, 0) == pytest.approx(1.0)
    assert decode_s(model, 4, 256) == pytest.approx(0.06)
    assert not is_extrapolated(model, 160, 160 * 161 / 2, 4, 256)
    assert is_extrapolated(model, 161, 160 * 161 / 2, 0, 0)


def test_a_table_of_one_knot_is_flat() -> None:
    assert table_s(array(4), array(0.5), array(1, 4, 9)) == pytest.approx([0.5, 0.5, 0.5])


# --- fitting ------------------------------------------------------------------------------------

TOKENS = array(16, 32, 64, 128, 256, 512, 1024, 64, 256, 256)
CACHED = array(0, 0, 0, 0, 0, 0, 0, 512, 512, 1024)
PAIRS = TOKENS * CACHED + TOKENS * (TOKENS + 1) / 2
BATCH = np.repeat(array(1, 2, 4, 8, 16), 4)
CONTEXT = BATCH * np.tile(array(64, 256, 512, 1024), 5)


@pytest.mark.parametrize("seed", range(5))
def test_planted_prefill_is_found(seed: int) -> None:
    planted = array(0.04, 0.0025, 1e-6)
    noise = np.random.default_rng(seed).uniform(0.98, 1.02, len(TOKENS))
    exact = planted[0] + planted[1] * TOKENS + planted[2] * PAIRS
    found = fit_prefill(TOKENS, PAIRS, exact * noise)
    assert found == pytest.approx(planted, rel=0.2)
    predicted = found[0] + found[1] * TOKENS + found[2] * PAIRS
    assert relative_errors(predicted, exact).max() < 0.02
    assert fit_prefill(TOKENS, PAIRS, exact) == pytest.approx(planted)


def planted_decode_s(batch: Floats, context: Floats) -> Floats:
    of_batch = np.interp(batch, [1, 2, 4, 8, 16], [0.04, 0.06, 0.06, 0.07, 0.1])
    of_context = np.interp(context, [0, 8192, 16384], [0.0, 0.08, 0.3])
    return np.asarray(of_batch + of_context)


@pytest.mark.parametrize("seed", range(5))
def test_planted_decode_is_found(seed: int) -> None:
    noise = np.random.default_rng(seed).uniform(0.98, 1.02, len(BATCH))
    batch, context = fit_decode(BATCH, CONTEXT, planted_decode_s(BATCH, CONTEXT) * noise)
    model = MODEL._replace(
        batches=batch.knots,
        batch_s=batch.seconds,
        contexts=context.knots,
        context_s=context.seconds,
    )
    held_out_batch, held_out_context = array(1, 3, 6, 12, 12), array(300, 900, 2400, 4800, 9600)
    predicted = np.asarray(decode_s(model, held_out_batch, held_out_context))
    wanted = planted_decode_s(held_out_batch, held_out_context)
    assert relative_errors(predicted, wanted).max() < 0.05


@given(seed=st.integers(0, 1000))
def test_a_fit_never_falls_whatever_was_measured(seed: int) -> None:
    seconds = np.random.default_rng(seed).uniform(0.01, 1.0, len(BATCH))
    for table in fit_decode(BATCH, CONTEXT, seconds):
        assert (np.diff(table.knots) > 0).all()
        assert (np.diff(table.seconds) >= 0).all()
        assert (table.seconds >= 0).all()


@given(seed=st.integers(0, 1000), rows=st.integers(1, 12), columns=st.integers(1, 6))
def test_nonnegative_least_squares_is_optimal(seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, target = rng.normal(size=(rows, columns)), rng.normal(size=rows)
    weights = nonnegative_least_squares(matrix, target)
    gain = matrix.T @ (target - matrix @ weights)
    # Karush, Kuhn and Tucker: no free weight gains by moving, no bound one by rising.
    assert (weights >= 0).all()
    assert (gain <= 1e-6).all()
    assert gain[weights > 0] == pytest.approx(0.0, abs=1e-6)


def test_errors_count_relative_to_what_was_measured() -> None:
    # One level for 1 s and 100 s: the short one counts as much, so it stays near.
    level = fit_relative(np.ones((2, 1)), array(1.0, 100.0))
    assert level[0] == pytest.approx(1.01 / 1.0001)


# --- L_m ----------------------------------------------------------------------------------------

LENGTHS = array(16, 32, 64, 128, 256, 512, 1024)
CURVES = [
    # id                                       seconds                            L_m
    ("saturated from the first", LENGTHS * 0.01, 16),
    ("a knee on a measured length", np.maximum(LENGTHS, 64) * 0.01, 61),
    ("a fixed cost of 19 tokens", 0.01 * (LENGTHS + 19), 270),
    ("attention slows long prompts", 0.01 * (LENGTHS + 19) + 1e-5 * LENGTHS**2, 77),
    ("never saturated", np.full(7, 1.0), 973),
]


@pytest.mark.parametrize(("seconds", "want"), [c[1:] for c in CURVES], ids=[c[0] for c in CURVES])
def test_l_m(seconds: Floats, want: int) -> None:
    found = find_l_m(LENGTHS, seconds)
    assert found == want
    rates = LENGTHS / seconds
    assert np.interp(found, LENGTHS, rates) >= 0.95 * rates.max()


def test_l_m_takes_the_quickest_step_of_a_length() -> None:
    lengths = np.concatenate([LENGTHS, array(128)])
    assert find_l_m(lengths, np.concatenate([LENGTHS * 0.02, array(1.28)])) == 122


def test_a_slowed_condition_is_another_model() -> None:
    fast, slow = latency_model(condition()), latency_model(replace(condition("loaded", 2.0)))
    assert prefill_s(slow, 50, 0) == pytest.approx(2 * np.asarray(prefill_s(fast, 50, 0)))
