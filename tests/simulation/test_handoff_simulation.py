"""Both ends of the handoff through random schedules: no rule is broken, no planted bug survives."""

from enum import Enum

import pytest

from core.handoff import SINK, SOURCE
from core.lifecycle import LIFECYCLE
from core.tables import Ruling
from tests.simulation.mutants import MUTANTS
from tests.simulation.seeds import REAL, Result, Simulation, explain, replaced, run_seeds
from tests.simulation.unreachable import UNREACHABLE

NUM_MUTANT_SEEDS = 4000
"""Most bugs show within a hundred; two that need a rare order, once in some thousands."""
ALL_PAIRS: dict[tuple[Enum, Enum], Enum] = {
    **{pair: SOURCE.look(*pair) for pair in SOURCE.pairs()},
    **{pair: SINK.look(*pair) for pair in SINK.pairs()},
    **{pair: LIFECYCLE.look(*pair) for pair in LIFECYCLE.pairs()},
}


def test_ten_thousand_seeds(
    ten_thousand: tuple[Result, float], capsys: pytest.CaptureFixture[str]
) -> None:
    result, wall_s = ten_thousand
    with capsys.disabled():
        print(f"\n{result.summary()} in {wall_s:.1f} s")
    assert not result.failure, result.failure
    assert result.num_seeds == 10_000
    assert result.fewest_events >= 50


def test_every_reachable_pair_is_visited(ten_thousand: tuple[Result, float]) -> None:
    visits = ten_thousand[0].visits
    missing = [
        pair
        for pair, ruling in ALL_PAIRS.items()
        if ruling is not Ruling.BUG and pair not in UNREACHABLE and not visits[pair]
    ]
    assert not missing


def test_no_bug_pair_is_visited(ten_thousand: tuple[Result, float]) -> None:
    visits = ten_thousand[0].visits
    assert not [p for p, ruling in ALL_PAIRS.items() if ruling is Ruling.BUG and visits[p]]


def test_what_is_listed_as_unreachable_is_not_reached(ten_thousand: tuple[Result, float]) -> None:
    visits = ten_thousand[0].visits
    assert not [pair for pair in UNREACHABLE if visits[pair]]


FEATURES = [
    # what                              in ten thousand seeds at least
    ("overload", 100),
    ("refused by prefill", 100),
    ("refused by decode", 100),
    ("preempted", 100),
    ("waits for room", 100),
    ("prompts that wait for blocks", 100),
    ("tokens shared at prefill", 1000),
    ("tokens shared at decode", 1000),
    ("prefixes lent", 100),
    ("prefixes fetched", 100),
    ("prefixes cancelled", 100),
    ("refused without leave", 100),
    ("waits for a slot", 100),
    ("overwritten payloads", 20),
]


@pytest.mark.parametrize(("what", "fewest"), FEATURES, ids=[f[0] for f in FEATURES])
def test_what_only_some_schedules_show_is_seen(
    what: str, fewest: int, ten_thousand: tuple[Result, float]
) -> None:
    assert ten_thousand[0].seen[what] >= fewest


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bug_is_caught(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_seeds(range(NUM_MUTANT_SEEDS), MUTANTS[name])
    assert result.failed_seed is not None, f"{name}: not caught by {NUM_MUTANT_SEEDS} seeds"
    assert f"seed {result.failed_seed}:" in result.failure
    with capsys.disabled():
        print(f"\n{name}: caught by {result.failure.splitlines()[0]}")


def test_a_failing_seed_fails_again_with_its_trace() -> None:
    parts = MUTANTS["quarantine forgotten"]
    result = run_seeds(range(1000), parts)
    assert result.failed_seed is not None
    assert explain(result.failed_seed, parts) == result.failure
    assert "last of" in result.failure


def test_a_seed_is_a_schedule() -> None:
    def schedule(seed: int) -> list[str]:
        trace: list[str] = []
        with replaced(REAL):
            Simulation(seed, REAL, trace).run()
        return trace

    assert schedule(7) == schedule(7)
    assert schedule(7) != schedule(8)
