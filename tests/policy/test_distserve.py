"""DistServe's published parameters: check values, defects, and what there is none of."""

import pytest

from core.errors import NoProfile
from core.parallel import ParallelLayout
from policy.distserve import CAPACITY_MODELS, DistServe, capacities, capacity_tokens
from policy.latency_source import Extent, extrapolations
from policy.step_times import decode_ps, mixed_s, prefill_s, prefill_stage_s

PS_PER_MS = 1e9
ONE, TWO = ParallelLayout(), ParallelLayout(tp=2)
BARE = DistServe(model="opt-13b").without_overhead()

PREFILL = [
    # prompts, tokens of each, ms
    (1, 512, 73.149),
    (2, 512, 127.195),
    (1, 2047, 257.561),
]


@pytest.mark.parametrize(("num", "length", "want_ms"), PREFILL)
def test_prefill_as_published(num: int, length: int, want_ms: float) -> None:
    pairs = num * length * (length + 1) // 2
    got_s = prefill_s(BARE.times(ONE), num * length, pairs)
    assert round(got_s * 1e3, 3) == want_ms


DECODE = [
    # answers, tokens of context of each, ms
    (1, 512, 20.294),
    (64, 512, 42.943),
    (128, 512, 65.428),
    (94, 512, 53.728),
    (95, 512, 50.407),  # quicker than one answer less: the two fits do not meet, as published
]


@pytest.mark.parametrize(("batch", "context", "want_ms"), DECODE)
def test_decode_as_published(batch: int, context: int, want_ms: float) -> None:
    got_ps = decode_ps(BARE.times(ONE), batch, batch * context)
    assert round(got_ps / PS_PER_MS, 3) == want_ms


def test_the_published_simulator_says_the_same_of_a_request_alone() -> None:
    """Its first request of case F: 374 prompt tokens on TP 2, then 44 decode steps on TP 1."""
    source = DistServe(model="opt-13b")
    ttft_s = prefill_s(source.times(TWO), 374, 374 * 375 // 2)
    decode = source.times(ONE)
    # Its tables count the token that a step computes; its overhead does not: 374 to 417.
    steps_ps = [decode_ps(decode, 1, 374 + step) for step in range(1, 45)]
    assert ttft_s * 1e3 == pytest.approx(43.770886, abs=5e-7)
    assert sum(steps_ps) / 44 / PS_PER_MS == pytest.approx(22.26134, abs=5e-6)


@pytest.mark.parametrize("pp", [1, 2, 4])
def test_stages_share_a_step_and_each_pays_a_millisecond_for_every_stage(pp: int) -> None:
    times = BARE.times(ParallelLayout(tp=1, pp=pp))
    whole_s = prefill_s(BARE.times(ONE), 512, 512 * 513 // 2) - 1e-3
    for stage in range(pp):
        got_s = prefill_stage_s(times, 512, 512 * 513 // 2, stage)
        assert got_s == pytest.approx(whole_s / pp + 1e-3 * pp)


def test_only_the_first_stage_pays_the_overhead() -> None:
    layout = ParallelLayout(tp=1, pp=2)
    with_it, without = DistServe(model="opt-13b").times(layout), BARE.times(layout)
    more_s = [
        prefill_stage_s(with_it, 512, 9, stage) - prefill_stage_s(without, 512, 9, stage)
        for stage in (0, 1)
    ]
    assert more_s == pytest.approx([2e-3 + 512e-7, 0.0])


def test_a_mixed_step_reads_the_weights_once() -> None:
    times = BARE.times(ONE)
    apart_s = prefill_s(times, 512, 512 * 513 // 2) + decode_ps(times, 8, 4096) / 1e12
    assert mixed_s(times, 512, 512 * 513 // 2, 8, 4096) == pytest.approx(
        apart_s - 0.0181025, abs=1e-6
    )


def test_the_engines_differ() -> None:
    vllm = DistServe(model="opt-13b", engine="vllm").times(ONE)
    assert decode_ps(vllm, 1, 512) > decode_ps(BARE.times(ONE), 1, 512)


MISSING = [
    # what is asked for, what the error must say
    (lambda: DistServe(model="opt-175b"), r"opt-175b .*there is opt-13b, opt-66b; .*baton profile"),
    (lambda: DistServe(model="opt-13b", engine="orca"), "there is distserve, vllm"),
    (lambda: BARE.times(ParallelLayout(tp=3)), "tp = 3 .*there is tp = 1, tp = 2, tp = 4;"),
    (lambda: BARE.reach(ParallelLayout(tp=8)), "there is tp = 1, tp = 2, tp = 4;"),
    (lambda: BARE.capacity_tokens(ParallelLayout(tp=3)), "as 3x1; there is 1x1, 1x2"),
]


@pytest.mark.parametrize(("ask", "says"), MISSING)
def test_what_is_missing_is_said_with_what_there_is(ask: object, says: str) -> None:
    with pytest.raises(NoProfile, match=says):
        ask()  # type: ignore[operator]


def test_capacities_as_published() -> None:
    assert sum(len(capacities(model)) for model in CAPACITY_MODELS) == 76
    assert capacity_tokens("opt-13b", ONE) == 66_144
    assert capacity_tokens("opt-66b", ParallelLayout(tp=4, pp=1)) == 78_496
    assert capacity_tokens("opt-175b", ParallelLayout(tp=3, pp=3)) == 76_192


def test_layouts_are_those_with_times_and_room() -> None:
    layouts = DistServe(model="opt-66b").layouts()
    assert {layout.tp for layout in layouts} == {2, 3, 4, 8}
    assert ParallelLayout(tp=6) not in layouts  # room is known, times are not


def test_beyond_what_was_measured_is_named() -> None:
    reach = DistServe(model="opt-66b").reach(TWO)
    assert (
        list(extrapolations(reach, Extent(prompt_tokens=2020, batch=192, step_tokens=8192))) == []
    )
    assert list(extrapolations(reach, Extent(prompt_tokens=2048, batch=200))) == [
        "extrapolated: prompts of up to 2,048 tokens, measured to 2,020",
        "extrapolated: up to 200 answers in one step, measured to 192",
    ]
