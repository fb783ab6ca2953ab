"""Roles first, scale second: what is planned for made-up requests, by the real simulator.

A prompt token takes 0.1 ms; a step of n answers 10 ms and n times 0.1 ms.
"""

from dataclasses import replace

import numpy as np
import pytest

from core.errors import ConfigError
from core.member import Role
from core.parallel import ParallelLayout
from core.plan import OnlinePlan, Plan, PoolPlan
from core.slo import Slo
from planner.online.ground import Ground, Sizes
from planner.online.history import History, can_be_played, history_of
from planner.online.replan import MAX_SPLITS, Bounds, Margins, Replan, replan, splits
from tests.planner.online.made import even, moments, recent
from tests.planner.search.fakes import fleet

ONE, TWO = ParallelLayout(), ParallelLayout(tp=2)
SLO, TARGET = Slo(ttft_s=0.5, tpot_s=0.03), 0.9
SPAN_S = 60.0
PROMPTS, ANSWERS = (1000, 10), (50, 300)
"""Long prompts with short answers, and the other way round."""


def ground(decode: ParallelLayout = ONE) -> Ground:
    layouts = {Role.PREFILL: ONE, Role.DECODE: decode, Role.MIXED: ONE}
    return Ground(fleet=fleet(), layouts=layouts, slo=SLO, target=TARGET)


def history(kind: tuple[int, int], rate_per_s: float, seed: int = 0) -> History:
    rng = np.random.default_rng(seed)
    at_s = moments(rng, rate_per_s, SPAN_S, burst_s=5.0, idle=0.0)
    return history_of(recent(at_s, *kind, span_s=SPAN_S), slo=SLO, target=TARGET)


def sizes(prefill: int, decode: int, mixed: int = 0) -> Sizes:
    return Sizes(prefill=prefill, decode=decode, mixed=mixed)


CASES = [
    # id                       requests, a second, now      at least, at most      then
    ("prompts: decode helps", PROMPTS, 30.0, (4, 4), (8, 8), (7, 1)),
    ("answers: prefill helps", ANSWERS, 30.0, (4, 4), (8, 8), (1, 7)),
    ("well as it is", PROMPTS, 30.0, (7, 1), (8, 8), (7, 1)),
    ("roles, and not more", PROMPTS, 30.0, (4, 4), (8, 16), (7, 1)),
    ("far fewer", PROMPTS, 5.0, (7, 1), (2, 8), (2, 1)),
    ("not fewer than that", PROMPTS, 5.0, (7, 1), (5, 8), (4, 1)),
    ("fewer, but not far", PROMPTS, 40.0, (7, 1), (2, 8), (7, 1)),
    ("nothing can be done", PROMPTS, 500.0, (7, 1), (2, 8), (7, 1)),
]


@pytest.mark.parametrize(
    ("kind", "rate_per_s", "now", "bounds", "after"),
    [c[1:] for c in CASES],
    ids=[c[0] for c in CASES],
)
def test_roles_first(
    kind: tuple[int, int],
    rate_per_s: float,
    now: tuple[int, int],
    bounds: tuple[int, int],
    after: tuple[int, int],
) -> None:
    limits = Bounds(min_instances=bounds[0], max_instances=bounds[1])
    found = replan(ground(), history(kind, rate_per_s), sizes(*now), limits)
    assert found.after == sizes(*after), found.reasons
    assert found.is_change == (now != after)
    assert found.reasons


def test_then_scale_by_as_few_as_do() -> None:
    limits, work = Bounds(max_instances=24), history(PROMPTS, 100.0)
    found = replan(ground(), work, sizes(7, 1), limits)
    assert 8 < found.after.total < 24
    assert found.forecast_before.attainment < TARGET <= found.forecast_after.attainment
    assert found.forecast_after.goodput_per_s >= 1.1 * work.rate_per_s
    assert not any(
        ground().attains(each, work, 1.1 * work.rate_per_s)
        for each in splits(sizes(7, 1), found.after.total - 1, by_role=True)
    )


def test_where_not_even_the_most_do_the_most_are_taken() -> None:
    found = replan(ground(), history(PROMPTS, 200.0), sizes(7, 1), Bounds(max_instances=10))
    assert found.after == sizes(9, 1)
    assert any("not even 10 instances" in reason for reason in found.reasons)


def test_a_small_gain_is_not_worth_a_change() -> None:
    work, now = history(PROMPTS, 30.0), sizes(6, 2)
    limits = Bounds(min_instances=8, max_instances=8)
    assert replan(ground(), work, now, limits).after == sizes(7, 1)
    assert replan(ground(), work, now, limits, Margins(gain=0.3)).after == now


def test_instances_of_different_layouts_do_not_change_roles() -> None:
    limits = Bounds(max_instances=24)
    kept = replan(ground(TWO), history(PROMPTS, 30.0), sizes(4, 4), limits)
    assert kept.after == sizes(4, 4)
    grown = replan(ground(TWO), history(PROMPTS, 60.0), sizes(4, 4), limits).after
    assert grown.prefill > 4
    assert grown.decode == 4


@pytest.mark.parametrize("mixed", [1, 3])
def test_mixed_instances_stay_as_they_are(mixed: int) -> None:
    limits = Bounds(min_instances=8 + mixed, max_instances=8 + mixed)
    found = replan(ground(), history(ANSWERS, 30.0), sizes(6, 2, mixed), limits)
    assert found.after.mixed == mixed
    assert found.after.decode > 2


def test_without_pools_of_a_phase_there_is_only_scale() -> None:
    found = replan(ground(), history(PROMPTS, 30.0), sizes(0, 0, 2), Bounds(max_instances=8))
    assert (found.after.prefill, found.after.decode) == (0, 0)
    assert found.after.mixed > 2


@pytest.mark.parametrize("seed", range(6))
def test_laws(seed: int) -> None:
    """Whatever comes: within the bounds, never worse, the same again."""
    rng = np.random.default_rng(seed)
    kind = (int(rng.integers(50, 1500)), int(rng.integers(1, 300)))
    now = sizes(int(rng.integers(1, 6)), int(rng.integers(1, 6)))
    limits = Bounds(max_instances=now.total + int(rng.integers(0, 6)))
    work = history(kind, float(rng.uniform(1.0, 40.0)), seed)
    found = replan(ground(), work, now, limits)
    assert limits.min_instances <= found.after.total <= limits.max_instances
    assert found == replan(ground(), work, now, limits)
    if found.is_change and found.after.total >= now.total:
        assert found.forecast_after.goodput_per_s >= 1.1 * found.forecast_before.goodput_per_s
    if found.is_change and found.after.total < now.total:
        assert found.forecast_after.attainment >= TARGET
    assert not again(found, work, limits).is_change


def again(found: Replan, work: History, limits: Bounds) -> Replan:
    return replan(ground(), work, found.after, limits)


@pytest.mark.parametrize("total", [2, 8, MAX_SPLITS, 100, 1000])
def test_splits_are_few_and_hold_the_present(total: int) -> None:
    now = sizes(max(1, total // 3), total - max(1, total // 3))
    found = splits(now, total, by_role=True)
    assert now in found
    assert all(each.total == total and min(each.prefill, each.decode) > 0 for each in found)
    assert len(found) == len(set(found)) <= 2 * MAX_SPLITS + 3


def test_what_was_refused_is_played_with_what_others_asked_for() -> None:
    is_ok = np.arange(100) % 4 > 0
    seen = recent(even(10.0, 10.0), 70, 20, span_s=10.0, is_ok=is_ok, hits=30)
    unknown = replace(seen, num_prompt_tokens=np.where(is_ok, 70, 0))
    refused = replace(seen, num_output_tokens=np.where(is_ok, 20, 0))
    for each in (unknown, refused):
        made = history_of(each, slo=SLO, target=TARGET).traffic(10.0, 100, 0)
        assert set(made.num_prompt_tokens) == {70}
        assert set(made.num_output_tokens) == {20}
        assert set(made.num_cached_tokens) == {30}


def test_time_is_scaled_and_lengths_are_not() -> None:
    made = history(PROMPTS, 10.0)
    num = len(made.at_s)
    slow, fast = (made.traffic(rate, num, 0) for rate in (made.rate_per_s, 4 * made.rate_per_s))
    assert np.allclose(slow.arrival_ps, 4 * fast.arrival_ps, atol=8)
    assert (slow.num_prompt_tokens == fast.num_prompt_tokens).all()
    twice = made.traffic(made.rate_per_s, 2 * num, 0)
    assert (np.diff(twice.arrival_ps) > 0).all()


def test_of_nothing_that_was_answered_nothing_is_planned() -> None:
    none = recent(even(10.0, 10.0), 70, 20, span_s=10.0, is_ok=np.zeros(100, dtype=np.bool_))
    assert not can_be_played(none)
    assert not can_be_played(recent(even(10.0, 0.0), 70, 20, span_s=10.0))
    assert can_be_played(recent(even(10.0, 1.0), 70, 20, span_s=10.0))


def plan(**online: object) -> Plan:
    return Plan(
        prefill=PoolPlan(replicas=3),
        decode=PoolPlan(replicas=2),
        online=OnlinePlan(enabled=True, **online),  # type: ignore[arg-type]
    )


def test_a_plan_says_what_it_may_become() -> None:
    assert Bounds.of(plan()) == Bounds(min_instances=5, max_instances=5)
    assert Bounds.of(plan(max_instances=9)) == Bounds(min_instances=2, max_instances=9)
    assert Bounds.of(plan(max_instances=4)) == Bounds(min_instances=2, max_instances=5)
    made = Ground.of(fleet(), plan(slo_ttft_s=2.0, slo_tpot_s=0.2, attainment=0.8))
    assert (made.slo, made.target) == (Slo(ttft_s=2.0, tpot_s=0.2), 0.8)
    assert made.roles_can_change
    assert Sizes.of(plan()) == sizes(3, 2)
    assert str(Sizes.of(plan())) == "3 prefill + 2 decode"


def test_a_layout_without_times_is_told() -> None:
    wide = replace(plan(), decode=PoolPlan(layout=ParallelLayout(tp=8)))
    with pytest.raises(ConfigError, match="decode: fake has no times for 8x1"):
        Ground.of(fleet(), wide)
