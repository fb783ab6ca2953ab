"""The measured model is `policy.latency`'s, rounded once."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError, NoProfile
from core.parallel import ParallelLayout
from core.profile import LOADED, DecodeFit, PrefillFit
from policy.latency import decode_s, latency_model, step_s
from policy.latency import prefill_s as model_prefill_s
from policy.latency_source import Extent, is_extrapolated
from policy.measured import Measured, step_times
from policy.model_files import preset
from policy.step_times import PS_PER_S, decode_ps, mixed_s, prefill_s
from tests.core.profiles import condition, profile

ONE = ParallelLayout()
SOURCE = Measured(profile=profile(), shape=preset("smollm2-135m"), num_blocks=100)
FITTED = replace(
    condition(),
    prefill=PrefillFit(base_s=0.04, per_token_s=0.0025, per_pair_s=1e-6),
    decode=DecodeFit(
        batches=(1, 2, 8, 64),
        batch_s=(0.04, 0.05, 0.08, 0.3),
        num_context_tokens=(0, 1000, 2048, 10_000),
        context_s=(0.0, 0.001, 0.004, 0.1),
    ),
)
MODEL = latency_model(FITTED)
TIMES = step_times(MODEL, 1, 128)


@given(tokens=st.integers(1, 10**5), pairs=st.integers(1, 10**9))
def test_prefill_is_the_same(tokens: int, pairs: int) -> None:
    want = model_prefill_s(MODEL, tokens, pairs)
    assert prefill_s(TIMES, tokens, pairs) == pytest.approx(want, rel=1e-12)


@given(batch=st.integers(1, 128), context=st.integers(0, 10**5))
def test_decode_is_the_same_to_half_a_picosecond_per_token(batch: int, context: int) -> None:
    off_ps = abs(
        decode_ps(TIMES, batch, context) - float(decode_s(MODEL, batch, context)) * PS_PER_S
    )
    assert off_ps <= (1 + context) / 2 + 0.01


@given(
    tokens=st.integers(1, 10**5),
    pairs=st.integers(1, 10**9),
    batch=st.integers(1, 128),
    context=st.integers(0, 10**5),
)
def test_a_mixed_step_is_the_same(tokens: int, pairs: int, batch: int, context: int) -> None:
    want = step_s(MODEL, tokens, pairs, batch, context)
    assert mixed_s(TIMES, tokens, pairs, batch, context) == pytest.approx(want, rel=1e-6)


ODD = [
    # id, knots, seconds, context, seconds
    ("one knot is level", (0,), (0.0,), 5000, 0.0),
    ("level before the first", (100, 200), (0.01, 0.03), 50, 0.01),
    ("rising after the first", (100, 200), (0.01, 0.03), 150, 0.02),
    ("going on after the last", (100, 200), (0.01, 0.03), 300, 0.05),
]


@pytest.mark.parametrize(
    ("knots", "seconds", "context", "want_s"), [c[1:] for c in ODD], ids=[c[0] for c in ODD]
)
def test_odd_tables(
    knots: tuple[int, ...], seconds: tuple[float, ...], context: int, want_s: float
) -> None:
    odd = replace(FITTED.decode, num_context_tokens=knots, context_s=seconds)
    times = step_times(latency_model(replace(FITTED, decode=odd)), 1, 4)
    assert decode_ps(times, 1, context) / 1e12 == pytest.approx(0.04 + want_s, abs=1e-9)


def test_conditions_differ() -> None:
    loaded = replace(SOURCE, condition=LOADED)
    assert prefill_s(loaded.times(ONE), 100, 0) == pytest.approx(
        2 * prefill_s(SOURCE.times(ONE), 100, 0)
    )
    with pytest.raises(ConfigError, match="not measured"):
        replace(SOURCE, condition="asleep").times(ONE)


def test_reach_room_and_l_m() -> None:
    assert SOURCE.capacity_tokens(ONE) == 1600
    assert SOURCE.l_m_tokens(ONE) == 128
    reach = SOURCE.reach(ONE)
    assert (reach.prompt_tokens, reach.batch, reach.context_tokens) == (160, 4, 256)
    assert is_extrapolated(reach, Extent(batch=5))
    assert not is_extrapolated(reach, Extent(batch=4, step_tokens=160))


def test_what_is_missing_is_said_with_what_there_is() -> None:
    for ask in (SOURCE.times, SOURCE.capacity_tokens, SOURCE.l_m_tokens, SOURCE.reach):
        with pytest.raises(NoProfile, match=r"tiny as 2x1 .*there is 1x1; .*baton profile"):
            ask(ParallelLayout(tp=2))
