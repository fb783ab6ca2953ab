"""Splitwise's table: the published look-up's figures, its defects, and the fit beside it."""

import numpy as np
import pytest

from core.errors import NoProfile
from core.parallel import ParallelLayout
from policy.splitwise import (
    HARDWARE,
    Splitwise,
    decode_fit,
    fit_mape,
    lookup_mape,
)
from policy.splitwise_rows import Row, all_rows, bad_rows, good_rows, named
from policy.step_times import decode_ps, mixed_s, prefill_s

EIGHT = ParallelLayout(tp=8)
ROWS = all_rows()
GOOD = good_rows(ROWS)
LOOKUP = {kind: Splitwise(model="bloom-176b", hardware=kind, form="lookup") for kind in HARDWARE}


def test_the_table_is_whole() -> None:
    assert len(ROWS) == 1260
    assert len({row.key for row in ROWS}) == 12


PREFILL = [
    # hardware, prompt tokens of the step, seconds in the published simulator
    ("h100-80gb", 4096, 0.6495982770284172),
    ("h100-80gb", 2048, 0.25196400948334485),
]


@pytest.mark.parametrize(("hardware", "num_tokens", "want_s"), PREFILL)
def test_prefill_as_published(hardware: str, num_tokens: int, want_s: float) -> None:
    assert prefill_s(LOOKUP[hardware].times(EIGHT), num_tokens, 1e9) == pytest.approx(
        want_s, rel=1e-15
    )


def test_the_published_simulator_says_the_same_of_a_request_alone() -> None:
    """Its first request: 4,096 prompt tokens, then 31 decode steps of one answer."""
    times = LOOKUP["h100-80gb"].times(EIGHT)
    e2e_s = prefill_s(times, 4096, 0) + 31 * decode_ps(times, 1, 4096) / 1e12
    assert e2e_s == pytest.approx(1.7447429609198237, abs=1e-10)


ACTIVE = [(1, 47.52), (16, 47.53), (64, 47.56), (256, 47.71), (512, 49.31)]


@pytest.mark.parametrize(("batch", "want_ms"), ACTIVE)
def test_decode_as_published_ignores_the_context(batch: int, want_ms: float) -> None:
    times = LOOKUP["a100-80gb"].times(EIGHT)
    assert round(decode_ps(times, batch, 0) / 1e9, 2) == want_ms
    assert decode_ps(times, batch, 10**6) == decode_ps(times, batch, 0)


def test_the_fit_sees_what_the_look_up_misses() -> None:
    """64 answers of 512 tokens of BLOOM-176B on A100: measured 96.6 ms."""
    fitted = Splitwise(model="bloom-176b", hardware="a100-80gb").times(EIGHT)
    assert decode_ps(fitted, 64, 64 * 576) / 1e9 == pytest.approx(96.6, rel=0.07)
    assert decode_ps(LOOKUP["a100-80gb"].times(EIGHT), 64, 64 * 576) / 1e9 < 48


def test_a_mixed_step_as_published() -> None:
    times = LOOKUP["h100-80gb"].times(EIGHT)
    assert mixed_s(times, 4090, 0, 6, 10**5) == pytest.approx(1.1 * 0.6495982770284172, rel=1e-15)


def test_capped_gpus_read_prompts_slower_and_write_answers_as_fast() -> None:
    plain, capped = LOOKUP["h100-80gb"].times(EIGHT), LOOKUP["h100-80gb-pcap"].times(EIGHT)
    assert prefill_s(capped, 4096, 0) == pytest.approx(1.3 * prefill_s(plain, 4096, 0))
    assert (capped.decode_base_ps == plain.decode_base_ps).all()


def test_bad_rows_are_named_and_dropped() -> None:
    assert named(bad_rows(ROWS)) == tuple(
        f"llama2-70b on {kind}, tp = 2, batch 64 of 512 tokens: 5 rows"
        for kind in ("a100-80gb", "h100-80gb", "h100-80gb-pcap")
    )
    assert len(GOOD) == 1260 - 15
    assert bad_rows(GOOD) == []
    source = Splitwise(model="llama-2-70b", hardware="h100-80gb")
    assert any("h100-80gb, tp = 2, batch 64" in note for note in source.notes)
    assert source.reach(ParallelLayout(tp=2)).batch == 32
    assert source.reach(EIGHT).batch == 64


def test_power_that_reads_zero_is_missing() -> None:
    measured = {row.hardware for row in ROWS if row.average_power is not None}
    assert measured == {"a100-80gb"}
    assert Splitwise(model="bloom-176b", hardware="h100-80gb").power_share(EIGHT) is None
    share = Splitwise(model="bloom-176b", hardware="a100-80gb").power_share(EIGHT)
    assert share == pytest.approx(0.623, abs=1e-3)


def split(rows: list[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Four fifths to interpolate in, one to be judged by."""
    order = np.random.default_rng(seed).permutation(len(rows))
    num_train = int(0.8 * len(rows))
    return [rows[i] for i in order[:num_train]], [rows[i] for i in order[num_train:]]


def test_the_published_function_is_right_within_three_per_cent() -> None:
    """The paper claims less than 3 % on one split of 80:20; a run of its own function said 3.01 %.

    Twenty splits lie between 2.3 and 3.0 %: which of them one gets is chance.
    """
    errors = [lookup_mape(*split(ROWS, seed)) for seed in range(20)]
    print(f"published look-up, MAPE of 20 splits: {np.mean(errors):.4f} ± {np.std(errors):.4f}")
    assert np.mean(errors) == pytest.approx(0.0275, abs=0.001)
    assert 0.022 < min(errors) <= max(errors) < 0.0302


def test_the_fit_is_as_right() -> None:
    errors = [fit_mape(*split(GOOD, seed)) for seed in range(20)]
    print(f"fit, MAPE of 20 splits: {np.mean(errors):.4f} ± {np.std(errors):.4f}")
    assert np.mean(errors) < 0.03


@pytest.mark.parametrize("key", sorted({row.key for row in GOOD}))
def test_no_step_of_a_fit_is_cheaper_with_more_in_it(key: tuple[str, str, int]) -> None:
    weights = decode_fit([row for row in GOOD if row.key == key])
    assert (weights > 0).all()


def test_room_as_the_published_simulator_has_it() -> None:
    room = LOOKUP["h100-80gb"].capacity_tokens(EIGHT)
    assert room == (8 * 85_899_345_920 - 329_000_000_000) // (2 * 70 * 14_336 * 2)


def test_what_is_missing_is_said_with_what_there_is() -> None:
    with pytest.raises(NoProfile, match="as 4x1; there is 8x1; measure it"):
        LOOKUP["h100-80gb"].times(ParallelLayout(tp=4))
    with pytest.raises(NoProfile, match="as 8x2; there is 8x1"):
        LOOKUP["h100-80gb"].capacity_tokens(ParallelLayout(tp=8, pp=2))
    with pytest.raises(NoProfile, match="there is a100-80gb, h100-80gb, h100-80gb-pcap"):
        Splitwise(model="bloom-176b", hardware="h200")
