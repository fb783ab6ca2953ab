"""Latency metrics: the glossary's definitions, by example and as sums."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.slo import (
    Moments,
    Slo,
    attainment,
    e2e_s,
    first_gap_parts,
    first_gap_s,
    meets,
    tpot_s,
    ttft_parts,
    ttft_s,
)
from core.timing import HandoffTiming, PrefillTiming

LONG = Moments(
    arrived_at_s=10.0,
    first_token_at_s=11.0,
    second_token_at_s=11.5,
    last_token_at_s=14.0,
    num_output_tokens=7,
)
ONE = Moments(arrived_at_s=10.0, first_token_at_s=11.0, last_token_at_s=11.0, num_output_tokens=1)


def test_definitions() -> None:
    assert (ttft_s(LONG), first_gap_s(LONG), tpot_s(LONG), e2e_s(LONG)) == (1.0, 0.5, 0.5, 4.0)
    assert (ttft_s(ONE), first_gap_s(ONE), tpot_s(ONE), e2e_s(ONE)) == (1.0, None, None, 1.0)


VERDICTS = [
    ("no limit", Slo(), LONG, True),
    ("at the limits", Slo(ttft_s=1.0, tpot_s=0.5, e2e_s=4.0), LONG, True),
    ("late first token", Slo(ttft_s=0.9), LONG, False),
    ("slow tokens", Slo(ttft_s=1.0, tpot_s=0.4), LONG, False),
    ("one token is judged on TTFT alone", Slo(ttft_s=1.0, tpot_s=0.0), ONE, True),
]


@pytest.mark.parametrize(
    ("slo", "moments", "want"), [c[1:] for c in VERDICTS], ids=[c[0] for c in VERDICTS]
)
def test_meets(slo: Slo, moments: Moments, want: bool) -> None:
    assert meets(slo, moments) is want


def test_attainment_counts_what_failed_as_missed() -> None:
    assert attainment(Slo(tpot_s=0.4), [LONG, ONE, None, ONE]) == 0.5
    assert attainment(Slo(), []) == 1.0


seconds = st.floats(0.0, 100.0)


@given(whole=seconds, queue=seconds, prefill=st.builds(PrefillTiming, queue_s=seconds))
def test_ttft_is_one_sum(whole: float, queue: float, prefill: PrefillTiming) -> None:
    parts = ttft_parts(whole, queue, prefill)
    total = parts.router_queue_s + parts.prefill_queue_s + parts.prefill_compute_s + parts.network_s
    assert total == pytest.approx(whole, abs=1e-9)


@given(
    whole=seconds,
    handoff=st.builds(
        HandoffTiming,
        source_tail_s=seconds,
        credit_wait_s=seconds,
        sink_tail_s=seconds,
        decode_queue_s=seconds,
        first_step_s=seconds,
    ),
)
def test_first_gap_is_one_sum(whole: float, handoff: HandoffTiming) -> None:
    parts = first_gap_parts(whole, handoff)
    total = (
        parts.exposed_transfer_s
        + parts.reserve_wait_s
        + parts.decode_queue_s
        + parts.first_step_s
        + parts.network_s
    )
    assert total == pytest.approx(whole, abs=1e-9)
