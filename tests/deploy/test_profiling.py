"""`baton profile` on an engine whose truth is known: figures, budget, resuming, agreement."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.profile import ALONE, LOADED, Profile, StepShape, load
from core.profile_compare import compare
from deploy.profile_journal import Journal, Round
from deploy.profile_plan import BudgetTooShort, ProfileJob
from deploy.profile_points import GridPoint, Room, affordable, between_fitted, grid, weight
from deploy.profile_result import MIN_INTERVAL, interval_of, typical_s
from deploy.profiling import profile
from tests.deploy.planted_engine import (
    BASE_S,
    COPY_BYTES_PER_S,
    PER_CONTEXT_TOKEN_S,
    PER_PAIR_S,
    PER_TOKEN_S,
    SUBJECT,
    PlantedEngine,
    StepFailed,
)

ROOM = Room(max_context_tokens=8192, num_blocks=1024, block_size=16)


def job_for(folder: Path, budget_s: float = 300.0, *, quick: bool = False) -> ProfileJob:
    """Starting at 0 of the engine's clock."""
    return ProfileJob(
        out=folder / "profile.json",
        deadline_s=budget_s,
        quick=quick,
        measured_at="2026-01-01T00:00:00+00:00",
        command="baton profile",
    )


def run(engine: PlantedEngine, job: ProfileJob) -> Profile:
    """The whole of it."""
    return profile(engine.bench(), SUBJECT, job, engine.neighbours)


# --- figures ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return run(PlantedEngine(), job_for(tmp_path_factory.mktemp("exact")))


def test_the_planted_model_is_found(exact: Profile) -> None:
    condition = exact.layout().condition(ALONE)
    prefill, decode = condition.prefill, condition.decode
    assert prefill.base_s == pytest.approx(BASE_S)
    assert prefill.per_token_s == pytest.approx(PER_TOKEN_S)
    assert prefill.per_pair_s == pytest.approx(PER_PAIR_S)
    assert decode.batch_s[0] == pytest.approx(0.043, rel=1e-3)
    per_token_s = decode.context_s[-1] / decode.num_context_tokens[-1]
    assert per_token_s == pytest.approx(PER_CONTEXT_TOKEN_S, rel=1e-2)
    assert condition.error.max < 0.001
    assert condition.interval == MIN_INTERVAL
    assert condition.prefill_error.num_points + condition.decode_error.num_points > 20


def test_l_m_is_where_the_base_is_a_twentieth(exact: Profile) -> None:
    # Of lengths up to 1024 in prompts of 64: base / (base + per token · n) against the best.
    assert 200 < exact.l_m_tokens < 400
    saturation = exact.layout().saturation
    assert saturation.low_tokens <= exact.l_m_tokens <= saturation.high_tokens


def test_a_loaded_machine_is_measured_while_it_is_loaded(exact: Profile) -> None:
    alone, loaded = exact.layout().condition(ALONE), exact.layout().condition(LOADED)
    times_s = {point.shape: point.time_s for point in alone.points}
    for point in loaded.points:
        assert point.time_s == pytest.approx(2.0 * times_s[point.shape])
    assert loaded.prefill.per_token_s == pytest.approx(2 * PER_TOKEN_S)


def test_copies_are_counted_in_bytes(exact: Profile) -> None:
    rates = {(c.kind, c.num_bytes): c.bytes_per_s for c in exact.layout().condition().copies}
    assert len(rates) == 6
    for (kind, _), rate in rates.items():
        wanted = COPY_BYTES_PER_S / (1 if kind == "gather" else 2)
        assert rate == pytest.approx(wanted, rel=1e-3)


def test_the_file_is_what_was_returned(tmp_path: Path) -> None:
    made = run(PlantedEngine(), job_for(tmp_path))
    assert load(tmp_path / "profile.json") == made
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]


def test_memory_is_touched_first(tmp_path: Path) -> None:
    engine = PlantedEngine()
    engine.fails_at_step = 1
    with pytest.raises(StepFailed):
        run(engine, job_for(tmp_path))
    assert engine.touched == set(range(1024))


@pytest.mark.parametrize("seed", range(3))
def test_a_second_run_agrees_within_its_stated_interval(tmp_path: Path, seed: int) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = run(PlantedEngine(noise=0.1, seed=seed), job_for(tmp_path / "a"))
    second = run(PlantedEngine(noise=0.1, seed=seed + 100), job_for(tmp_path / "b"))
    agreement = compare(first, second)
    assert agreement.holds
    assert first.layout().condition().error.median < 0.05
    assert first.layout().condition().interval < 0.2


def test_a_slower_machine_does_not_agree(tmp_path: Path, exact: Profile) -> None:
    slower = run(PlantedEngine(speed=0.8), job_for(tmp_path, 400.0))
    assert compare(exact, slower).share == 0.0


# --- budget -------------------------------------------------------------------------------------

BUDGETS = [
    # id            seconds, quick
    ("default", 300.0, False),
    ("half", 150.0, False),
    ("little", 60.0, False),
    ("quick", 54.0, True),
]


@pytest.mark.parametrize(
    ("budget_s", "quick"), [c[1:] for c in BUDGETS], ids=[c[0] for c in BUDGETS]
)
def test_the_budget_holds(tmp_path: Path, budget_s: float, quick: bool) -> None:
    engine = PlantedEngine(noise=0.1)
    made = run(engine, job_for(tmp_path, budget_s, quick=quick))
    # The last step may have begun just before the end.
    assert engine.clock.now_s() <= budget_s + 5.0
    assert made.layout().condition().num_rounds >= 3


def test_a_smaller_budget_drops_from_the_end_of_the_grid(tmp_path: Path) -> None:
    made = run(PlantedEngine(), job_for(tmp_path, 100.0))
    kept = {point.shape for point in made.layout().condition().points}
    points = grid(ROOM, quick=False)
    last = max(i for i, point in enumerate(points) if point.shape in kept)
    assert kept == {point.shape for point in between_fitted(points[: last + 1])}
    assert last < len(points) - 1


def test_too_little_time_for_anything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BudgetTooShort, match="give a longer --budget-s"):
        run(PlantedEngine(), job_for(tmp_path, 5.0))
    made = run(PlantedEngine(), job_for(tmp_path, 300.0))
    assert made.layout().condition().error.max < 0.001


def test_a_machine_that_turns_slow_ends_in_time_and_goes_on_later(tmp_path: Path) -> None:
    class Tiring(PlantedEngine):
        def _time_s(self, entries: object) -> float:
            return super()._time_s(entries) * (4 if self.num_steps > 300 else 1)  # type: ignore[arg-type]

    engine = Tiring()
    job = job_for(tmp_path)
    with pytest.raises(BudgetTooShort, match="run it again to go on"):
        run(engine, job)
    assert engine.clock.now_s() < 300.0 + 20.0
    assert run(PlantedEngine(), job).layout().condition().num_rounds == 5


# --- resuming -----------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on(tmp_path: Path, exact: Profile) -> None:
    whole, broken, resumed = PlantedEngine(), PlantedEngine(), PlantedEngine()
    (tmp_path / "whole").mkdir()
    run(whole, job_for(tmp_path / "whole"))
    broken.fails_at_step = whole.num_steps // 2
    with pytest.raises(StepFailed):
        run(broken, job_for(tmp_path))
    assert broken.num_neighbours == 0
    made = run(resumed, job_for(tmp_path))
    assert resumed.num_steps < 0.7 * whole.num_steps
    for name in (ALONE, LOADED):
        assert made.layout().condition(name).points == exact.layout().condition(name).points


def test_an_unfinished_line_is_forgotten(tmp_path: Path) -> None:
    path, shape = tmp_path / "partial", StepShape(kind="decode", batch=1, num_tokens=1)
    journal = Journal.open(path, {"of": "this"})
    journal.plan({ALONE: [shape]})
    done = Round(ALONE, {shape: 0.5}, {16: (0.1, 0.2)})
    journal.add(done)
    with path.open("a") as file:
        file.write('{"round": {"cond')
    resumed = Journal.open(path, {"of": "this"})
    assert (resumed.planned, resumed.rounds) == ({ALONE: [shape]}, [done])
    resumed.add(done)
    assert Journal.open(path, {"of": "this"}).rounds == [done, done]


def test_another_machine_s_journal_is_begun_anew(tmp_path: Path) -> None:
    broken = PlantedEngine()
    broken.fails_at_step = 500
    with pytest.raises(StepFailed):
        run(broken, job_for(tmp_path))
    other = replace(SUBJECT, machine=replace(SUBJECT.machine, cpu="another"))
    engine = PlantedEngine()
    profile(engine.bench(), other, job_for(tmp_path), engine.neighbours)
    assert engine.num_steps > 500
    assert json.loads((tmp_path / "profile.json").read_text())["subject"]["machine"]["cpu"] == (
        "another"
    )


# --- parts --------------------------------------------------------------------------------------


def test_held_out_steps_lie_between_the_fitted_ones() -> None:
    points = grid(ROOM, quick=False)
    for kind in ("prefill", "decode"):
        fitted = [p.shape for p in points if p.shape.kind == kind and not p.held_out]
        held_out = [p.shape for p in points if p.shape.kind == kind and p.held_out]
        assert not set(fitted) & set(held_out)
        tokens = sorted(shape.num_step_tokens for shape in fitted)
        contexts = sorted(shape.num_context_tokens for shape in fitted)
        for shape in held_out:
            assert tokens[0] <= shape.num_step_tokens <= tokens[-1]
            assert contexts[0] < shape.num_context_tokens < contexts[-1]


SMALL_ROOMS = [
    # id                context  blocks
    ("short context", 256, 1024),
    ("few blocks", 8192, 40),
]


@pytest.mark.parametrize(
    ("context", "num_blocks"), [c[1:] for c in SMALL_ROOMS], ids=[c[0] for c in SMALL_ROOMS]
)
def test_only_what_fits_is_measured(context: int, num_blocks: int) -> None:
    room = Room(max_context_tokens=context, num_blocks=num_blocks, block_size=16)
    points = grid(room, quick=False)
    assert 10 < len(points) < len(grid(ROOM, quick=False))
    for shape in (point.shape for point in points):
        assert shape.num_cached_tokens + shape.num_tokens <= context
        assert shape.num_context_tokens <= num_blocks * 16


def test_what_is_surely_too_dear_is_not_even_tried() -> None:
    tried: list[GridPoint] = []

    def cost_s(point: GridPoint) -> float:
        tried.append(point)
        return weight(point.shape)

    points = grid(ROOM, quick=False)
    kept = affordable(points, cost_s, lambda p: weight(p.shape), 300.0)
    assert kept == tried == points[: len(kept)]
    assert sum(weight(p.shape) for p in kept) <= 300.0


TYPICAL = [
    ([3.0, 1.0, 2.0], 1.0),
    ([4.0, 1.0, 2.0, 3.0], 1.0),
    ([5.0, 1.0, 4.0, 2.0, 3.0], 2.0),
]


@pytest.mark.parametrize(("times_s", "want_s"), TYPICAL)
def test_typical_is_the_lower_quartile(times_s: list[float], want_s: float) -> None:
    assert typical_s(times_s) == want_s


def test_the_interval_covers_what_halves_differ_by() -> None:
    shape = StepShape(kind="decode", batch=1, num_tokens=1)
    rounds = [Round(ALONE, {shape: seconds}, {}) for seconds in (1.0, 1.0, 1.1, 1.1)]
    # Two of six ways to halve them put 1.0 on one side only.
    assert interval_of(rounds) == pytest.approx(2 * 0.1 / 1.05)
