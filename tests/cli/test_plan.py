"""`baton plan`: a small question end to end, its files, and every way it ends."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from core.config import load as load_config
from core.plan import load_plan
from planner.workload.presets import load_workload

runner = CliRunner()
WIDE = {"COLUMNS": "160"}
# Smallest of each: two GPUs, short answers, the policy that takes least time to compile.
MODEL = ["plan", "llama-3.1-8b"]
GPUS = ["--gpu", "a100-80g-sxm", "--gpus", "2"]
WORK = ["--prompt-tokens", "512", "--output-tokens", "16", "--slo", "ttft=1,tpot=0.1"]
HOW = ["--policy", "shortest_queue", "--quick", "--threads", "1"]
SMALL = [*MODEL, *GPUS, *WORK, *HOW]


def test_help_is_for_a_newcomer() -> None:
    result = runner.invoke(app, ["plan", "--help"], env=WIDE)
    assert result.exit_code == 0
    for words in ("baton plan llama-3.1-8b --gpu", "docs/planner.md", "3 infeasible", "--explain"):
        assert words in result.output


REFUSED = [
    # id                arguments                                                  status  says
    ("no model", ["plan", "llama-9", *GPUS, *WORK], 4, "llama-3.1-70b"),
    ("no GPU", [*MODEL, "--gpu", "tpu", *WORK], 4, "h100-80g-sxm"),
    ("no such host", [*MODEL, *WORK, "--inventory", "nowhere.json"], 2, "nowhere.json"),
    ("a host and GPUs", [*SMALL, "--inventory", "nowhere.json"], 2, "leave out --gpu"),
    ("which GPU", [*MODEL, "--gpu", "h100", *WORK], 2, "h100-80g-pcie"),
    ("nothing published", [*MODEL, *GPUS, *WORK, "--latency", "distserve"], 4, "opt-13b"),
    ("not measured", [*MODEL, *WORK, "--profile", "nowhere.json"], 4, "baton profile"),
    ("no rate, no GPUs", [*MODEL, "--gpu", "h100-sxm", *WORK], 2, "a number of GPUs is needed"),
    ("no money", [*SMALL, "--max-usd-per-hour", "0.5"], 2, "at least 1 GPU is needed"),
    ("no such file", [*MODEL, *GPUS, *WORK[4:], "--workload", "nowhere.csv"], 2, "nowhere.csv"),
    ("no config", ["plan", "nowhere/config.json", *GPUS, *WORK], 2, "no such file"),
    ("no folder", [*SMALL, "--out", "nowhere/plan.toml"], 2, "there is no folder nowhere"),
    ("no such goal", [*SMALL, "--goal", "fame"], 2, "--goal must be of"),
    ("too large", ["plan", "llama-3.1-405b", *GPUS, *WORK], 2, "fit into no instance"),
]


@pytest.mark.parametrize(
    ("arguments", "status", "says"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_refused(arguments: list[str], status: int, says: str) -> None:
    result = runner.invoke(app, arguments, env=WIDE)
    assert says in result.output
    assert result.exit_code == status
    assert "Traceback" not in result.output


def test_all_problems_are_told_at_once() -> None:
    arguments = [*MODEL, "--gpus", "0", "--max-batch", "0", "--goal", "x", "--policy", "y"]
    result = runner.invoke(app, arguments, env=WIDE)
    assert result.exit_code == 2
    for option in ("--gpu ", "--gpus", "--max-batch", "--goal", "--policy", "--slo", "--workload"):
        assert option in result.output


def test_infeasible_names_the_limit_and_the_nearest() -> None:
    arguments = [*SMALL, "--slo", "ttft=0.001,tpot=0.1"]
    result = runner.invoke(app, arguments, env=WIDE)
    assert result.exit_code == 3
    assert "infeasible: TTFT within 1 ms" in result.output
    assert "the nearest is" in result.output


def test_a_rate_beyond_the_gpus_names_the_most_that_is() -> None:
    result = runner.invoke(app, [*SMALL, "--rate", "500"], env=WIDE)
    assert result.exit_code == 3
    assert "at 500 requests/s; the most that one does is" in result.output


@dataclass(frozen=True)
class Answered:
    """One run."""

    document: dict[str, Any]
    stderr: str
    folder: Path


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Answered:
    folder = tmp_path_factory.mktemp("plan")
    files = ["--out", str(folder / "plan.toml"), "--pictures", str(folder / "pictures")]
    result = runner.invoke(app, [*SMALL, *files, "--sensitivity", "--json"], env=WIDE)
    assert result.exit_code == 0, result.output
    return Answered(document=json.loads(result.stdout), stderr=result.stderr, folder=folder)


KEYS = {
    *("schema", "model", "goal", "rate_per_s", "budget", "is_feasible", "colocated_wins", "chosen"),
    *("ranked", "colocated", "missed", "best_rate_per_s", "what_if", "explanation"),
    *("num_runs", "num_requests"),
}
RANKED_KEYS = {
    *("cluster", "num_gpus", "num_instances", "num_segments", "is_colocated", "pools"),
    *("attains", "goodput_rps", "goodput_rps_per_gpu", "usd_per_hour", "verdict"),
    *("after_loss", "rates", "notes"),
}
VERDICT_KEYS = {
    *("rate_per_s", "attains", "is_sure", "is_steady", "attainment", "num_runs"),
    *("num_requests_per_run", "ttft_share", "tpot_share", "ttft_s", "tpot_s", "slo_scale"),
    *("bottleneck", "link_load", "num_preemptions_per_request", "average_w", "provisioned_w"),
    "usd_per_million_output_tokens",
}


def test_the_keys_of_json_are_kept(answered: Answered) -> None:
    assert answered.document["schema"] == 1
    assert answered.document.keys() == KEYS
    assert answered.document["chosen"].keys() == RANKED_KEYS
    assert answered.document["chosen"]["verdict"].keys() == VERDICT_KEYS


def test_the_plan_is_the_best_of_both_architectures(answered: Answered) -> None:
    found = answered.document
    rivals = [*found["ranked"], found["colocated"]]
    most = max(each["goodput_rps"] for each in rivals if each["attains"])
    assert found["chosen"]["goodput_rps"] == most
    assert found["colocated_wins"] is found["chosen"]["is_colocated"]


def test_goodput_lies_in_its_interval(answered: Answered) -> None:
    for each in answered.document["ranked"]:
        found = each["goodput_rps_per_gpu"]
        assert found["low"] <= found["value"] <= (found["high"] or float("inf"))


def test_what_if_names_every_change(answered: Answered) -> None:
    names = [each["name"] for each in answered.document["what_if"]]
    assert len(names) == 5
    assert any("host" in name for name in names)


def test_plan_and_settings_can_be_served(answered: Answered) -> None:
    plan = load_plan(answered.folder / "plan.toml")
    assert plan.num_ranks == answered.document["chosen"]["num_gpus"]
    config = load_config(answered.folder / "plan.config.toml")
    assert config.router.policy == "shortest_queue"
    assert config.worker.prefill_step_tokens == 2048


def test_the_load_is_a_trace_of_the_rate_planned_for(answered: Answered) -> None:
    load = load_workload(str(answered.folder / "plan.load.csv"))
    # Without a rate to serve, a little below the most.
    rate_per_s = 0.9 * answered.document["chosen"]["goodput_rps"]
    assert load.natural_rate_per_s == pytest.approx(rate_per_s, rel=0.1)
    assert load.mean_prompt_tokens == 512


def test_one_command_checks_the_forecast(answered: Answered) -> None:
    forecast = json.loads((answered.folder / "plan.forecast.json").read_text())
    command = f"--trace {answered.folder / 'plan.load.csv'} --slo ttft=1,tpot=0.1 --gpus 2"
    assert command in answered.stderr
    assert command in forecast["check"][1]
    assert forecast["of_this_load"]["attains"]
    assert forecast["in_steady_state"] == answered.document["chosen"]


def test_pictures_are_drawn(answered: Answered) -> None:
    names = {path.name for path in (answered.folder / "pictures").iterdir()}
    pictures = ("attainment_over_rate", "attainment_over_slo_scale", "pareto_front")
    assert names == {f"{name}.{kind}" for name in pictures for kind in ("svg", "png")}


def test_a_table_for_people_with_its_reasons() -> None:
    result = runner.invoke(app, [*SMALL, "--rate", "5", "--explain"], env=WIDE)
    assert result.exit_code == 0
    for words in ("At 5 requests/s", "goodput per GPU", "colocated", "assumed:", "plan: "):
        assert words in result.stdout
    assert "computed from data sheets with assumed efficiencies" in result.stdout
