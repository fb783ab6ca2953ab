"""The whole search, over a simulator that is simple enough to know the answer."""

from dataclasses import replace
from math import ceil

import pytest

from core.errors import ConfigError
from core.member import Role
from core.slo import Slo
from planner.search.fleet import Fleet, cluster_of
from planner.search.parallel import Workers
from planner.search.plan import plan, setting_of
from planner.search.question import Affinity, Answer, Question
from planner.search.results import Goal
from planner.search.sensitivity import sensitivities
from planner.search.spare import Spare
from planner.search.trials import Sampling
from planner.sim.spec import Network
from tests.planner.search.fakes import CHAT, Source, Work, fleet, simulate

SAMPLING = Sampling(num_requests=300, max_requests=600, max_runs=6)
QUESTION = Question(
    fleet=fleet(), workload=Work(), simulate=simulate, sampling=SAMPLING, num_simulated=4
)


def answer(**changes: object) -> Answer:
    return plan(replace(QUESTION, **changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def at_30() -> Answer:
    """Prompts take 50 ms on one GPU."""
    return answer(rate_per_s=30.0)


def test_a_rate_is_served_by_the_fewest_gpus_that_pass(at_30: Answer) -> None:
    best = at_30.best
    assert at_30.is_feasible
    assert best is not None
    assert best.verdict.rate_per_s == 30.0
    assert best.verdict.judgement.attains
    assert best.found.low_per_s >= 30.0
    assert best.candidate.num_gpus >= ceil(30 * 0.05) + 1  # work conservation
    assert [each.candidate.num_gpus for each in at_30.ranked] == sorted(
        each.candidate.num_gpus for each in at_30.ranked if each.attains
    )


def test_nothing_smaller_of_the_same_layouts_passes(at_30: Answer) -> None:
    best = at_30.best
    assert best is not None
    assert [pool.role for pool in best.candidate.pools] == [Role.PREFILL, Role.DECODE]
    setting = setting_of(QUESTION)
    for which, pool in enumerate(best.candidate.pools):
        if pool.num > 1:
            fewer = list(best.candidate.pools)
            fewer[which] = replace(pool, num=pool.num - 1)
            cluster = cluster_of(QUESTION.fleet, replace(best.candidate, pools=tuple(fewer)))
            other = plan(replace(QUESTION, rate_per_s=30.0, max_gpus=cluster.num_gpus))
            assert other.best is None or other.best.candidate.num_gpus <= cluster.num_gpus
            assert setting.bounds(cluster).most_per_s > 0


def test_the_best_colocated_cluster_is_told_beside_it(at_30: Answer) -> None:
    assert at_30.colocated is not None
    assert at_30.colocated.candidate.is_colocated
    assert any("by the same latency models" in reason for reason in at_30.reasons)
    # The fake's answers cost nothing of a prompt's time, so that sharing GPUs is free.
    assert at_30.colocated_wins
    assert any(reason.startswith("colocated wins") for reason in at_30.reasons)


@pytest.mark.parametrize("num_threads", [2, 5])
def test_threads_change_nothing(at_30: Answer, num_threads: int) -> None:
    assert answer(rate_per_s=30.0, num_threads=num_threads) == at_30


def test_a_budget_is_spent_on_goodput() -> None:
    few, more = (answer(max_gpus=num, goal=Goal.GOODPUT) for num in (4, 8))
    for made, num in ((few, 4), (more, 8)):
        assert made.best is not None
        assert made.best.candidate.num_gpus <= num
    assert more.best_rate_per_s > 1.5 * few.best_rate_per_s


def test_dollars_or_watts_are_a_budget_too() -> None:
    """Of GPUs of 2 USD and 500 W: what buys four is what four come to."""
    four = answer(max_gpus=4, goal=Goal.GOODPUT)
    for limits in ({"max_usd_per_hour": 9.9}, {"max_w": 2000.0}):
        bought = answer(goal=Goal.GOODPUT, **limits)
        assert bought.best is not None
        assert four.best is not None
        assert str(bought.best.candidate) == str(four.best.candidate)
    nothing = answer(max_usd_per_hour=5.0, rate_per_s=500.0)
    assert not nothing.is_feasible
    assert all(each.candidate.num_gpus <= 2 for each in nothing.ranked)


def test_a_budget_of_what_is_not_known_is_refused() -> None:
    unpriced = Fleet(hardware=(replace(fleet().hardware[0], price_usd_per_gpu_hour=0.0),))
    with pytest.raises(ConfigError, match="no price"):
        answer(fleet=unpriced, max_usd_per_hour=5.0)
    with pytest.raises(ConfigError, match="at least 1 GPU is needed"):
        answer(max_usd_per_hour=-5.0)


def test_cost_and_power_may_choose_other_gpus() -> None:
    one = fleet().hardware[0]
    cheap = replace(one, name="cheap", price_usd_per_gpu_hour=0.1, source=Source(token_s=2e-4))
    mixed = Fleet(hardware=(one, cheap))
    costly = answer(fleet=mixed, rate_per_s=10.0, goal=Goal.GPUS).best
    frugal = answer(fleet=mixed, rate_per_s=10.0, goal=Goal.COST).best
    assert costly is not None
    assert frugal is not None
    assert {pool.hardware for pool in frugal.candidate.pools} == {"cheap"}
    assert frugal.usd_per_hour < costly.usd_per_hour
    assert costly.candidate.num_gpus <= frugal.candidate.num_gpus


def test_a_limit_that_nothing_keeps() -> None:
    """The fastest layout reads the P90 of the prompts in 22 ms, and answers a token in 5 ms."""
    tight = replace(CHAT, slo=Slo(ttft_s=0.5, tpot_s=0.001))
    got = answer(workload=Work(classes=(tight,)), rate_per_s=1.0)
    assert not got.is_feasible
    assert got.ranked == ()
    (missed,) = got.missed
    assert (missed.class_name, missed.limit, missed.limit_s) == ("chat", "tpot_s", 0.001)
    assert missed.reached_s == pytest.approx(0.0051)
    assert any("too slow even when requests never meet" in reason for reason in got.reasons)


def test_a_rate_that_the_gpus_do_not_suffice_for() -> None:
    got = answer(rate_per_s=500.0, max_gpus=8)
    assert not got.is_feasible
    assert got.missed == ()
    assert 0 < got.best_rate_per_s < 500
    first = got.ranked[0]
    assert not first.attains
    assert first.verdict.rate_per_s == 500.0
    assert first.found.low_per_s > 0
    assert any("are not attained" in reason for reason in got.reasons)


def test_one_more_instance_than_is_needed(at_30: Answer) -> None:
    spare = answer(rate_per_s=30.0, spare=Spare.INSTANCE)
    assert spare.best is not None
    assert at_30.best is not None
    assert spare.best.after_loss is not None
    assert spare.best.after_loss.attains
    assert spare.best.candidate.num_gpus > at_30.best.candidate.num_gpus
    assert all(pool.num > 1 for pool in spare.best.candidate.pools)


def test_slow_links_bring_the_phases_onto_one_host() -> None:
    slow = replace(fleet(), network=Network(host_bytes_per_s=4e6, local_bytes_per_s=1e12))
    got = answer(fleet=slow, rate_per_s=30.0)
    assert any(each.candidate.num_segments for each in got.ranked)
    high = answer(fleet=slow, rate_per_s=30.0, affinity=Affinity.HIGH)
    assert not any(each.candidate.num_segments for each in high.ranked)


def test_progress_is_told() -> None:
    said: list[str] = []
    plan(replace(QUESTION, rate_per_s=10.0, fleet=fleet(Source(tps=(1,)))), said.append)
    assert said[:2] == ["prefill layouts: 1 of 1", "decode layouts: 1 of 1"]
    assert said[-1].startswith("clusters with one pool: ")


def test_what_lies_beyond_a_profile_is_told(at_30: Answer) -> None:
    """The fake was measured with prompts of up to 600 tokens, and the longest have 750."""
    assert at_30.best is not None
    assert any("prompts of up to 749 tokens, measured to 600" in n for n in at_30.best.notes)


PROBLEMS = [
    # id                   changes                        says
    ("no GPUs", {"fleet": Fleet(hardware=())}, "GPUs of some kind"),
    ("no rate", {"rate_per_s": 0.0}, "rate must be above 0"),
    ("no end", {"fleet": fleet(num_hosts=10**6)}, "without a rate"),
    ("precision", {"precision": 0.0, "rate_per_s": 1.0}, "precision"),
    ("threads", {"num_threads": 0, "rate_per_s": 1.0}, "threads"),
    (
        "no price",
        {
            "goal": Goal.COST,
            "fleet": Fleet(hardware=(replace(fleet().hardware[0], price_usd_per_gpu_hour=0.0),)),
        },
        "no price",
    ),
]


@pytest.mark.parametrize(
    ("changes", "says"), [c[1:] for c in PROBLEMS], ids=[c[0] for c in PROBLEMS]
)
def test_questions_that_make_no_sense(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        answer(**changes)


def test_what_becomes_of_a_plan(at_30: Answer) -> None:
    assert at_30.best is not None
    got = sensitivities(setting_of(QUESTION), at_30.best, Workers(num_threads=2))
    by_name = {each.name: each for each in got}
    assert list(by_name) == [
        "rate +20 %",
        "rate -20 %",
        "answers 2 times as long",
        "one host lost",
        "links 4 times slower",
    ]
    more, less = by_name["rate +20 %"], by_name["rate -20 %"]
    assert more.judgement.rate_per_s == pytest.approx(36.0)
    assert more.attainment_change <= less.attainment_change
    assert more.goodput_change == less.goodput_change == 0
    # All of it is on one host; links cost the fake nothing.
    assert by_name["one host lost"].goodput_change == -1
    assert not by_name["one host lost"].judgement.attains
    assert by_name["links 4 times slower"].attainment_change == pytest.approx(0.0, abs=0.02)
