"""`baton simulate`: one given cluster under a load."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app

runner = CliRunner()
WIDE = {"COLUMNS": "160"}
COMMON = [
    *("simulate", "llama-3.1-8b", "--gpu", "a100-80g-sxm", "--policy", "shortest_queue"),
    *("--prompt-tokens", "512", "--output-tokens", "16", "--slo", "ttft=1,tpot=0.1"),
    *("--num-requests", "300", "--runs", "2"),
]
PAIR = ["--prefill", "1x1:1", "--decode", "1x1:1", "--rate", "5"]


def played(*arguments: str) -> dict[str, Any]:
    result = runner.invoke(app, [*COMMON, *arguments, "--json"], env=WIDE)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_help_is_for_a_newcomer() -> None:
    result = runner.invoke(app, ["simulate", "--help"], env=WIDE)
    assert result.exit_code == 0
    for words in ("baton simulate llama-3.1-8b --gpu", "docs/planner.md", "--lose"):
        assert words in result.output


REFUSED = [
    # id              arguments                                        says
    ("no cluster", ["--rate", "5"], "a cluster is needed"),
    ("no rate", PAIR[:4], "--rate is needed"),
    ("half a pair", ["--prefill", "1x1:1", "--rate", "5"], "needs prefill and decode instances"),
    ("no layout", ["--mixed", "two:1", "--rate", "5"], "TPxPP"),
    ("no such GPU", ["--mixed", "1x1:1@l4", "--rate", "5"], "the GPUs are a100-80g-sxm"),
    ("nobody there", [*PAIR, "--lose", "7@1"], "instances are 0 to 1"),
    ("back too soon", [*PAIR, "--lose", "0@5-3"], "--lose must be INSTANCE@SECONDS"),
    ("no scheduling", [*PAIR, "--scheduling", "x"], "--scheduling must be of"),
]


@pytest.mark.parametrize(
    ("arguments", "says"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_refused(arguments: list[str], says: str) -> None:
    result = runner.invoke(app, [*COMMON, *arguments], env=WIDE)
    assert says in result.output
    assert result.exit_code == 2


def test_a_pair_serves_a_light_load() -> None:
    found = played(*PAIR)
    assert found["num_gpus"] == 2
    assert found["attains"]
    assert found["attainment"]["all"]["value"] == 1.0
    assert found["ttft_s"]["p50"] <= found["ttft_s"]["p90"] <= found["ttft_s"]["p99"]
    assert found["counters"]["num_transfers"] == found["num_requests"] == 600
    assert found["average_w"] < found["provisioned_w"] == 800


def test_the_same_seed_gives_the_same_figures() -> None:
    assert played(*PAIR) == played(*PAIR)
    assert played(*PAIR) != played(*PAIR, "--seed", "9")


def test_a_cluster_from_a_plan_is_the_same_cluster(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text("[prefill]\nreplicas = 1\n[decode]\nreplicas = 1\n")
    assert played("--plan", str(plan), "--rate", "5") == played(*PAIR)


@pytest.mark.parametrize("scheduling", ["exclusive", "joined", "chunked"])
def test_colocated_instances_send_nothing(scheduling: str) -> None:
    found = played("--mixed", "1x1:2", "--rate", "5", "--scheduling", scheduling)
    assert found["is_colocated"]
    assert found["counters"]["num_transfers"] == 0


def test_a_loss_makes_some_late() -> None:
    whole, torn = played(*PAIR), played(*PAIR, "--lose", "0@10-20")
    assert torn["ttft_s"]["p99"] > whole["ttft_s"]["p99"]


def test_a_table_for_people() -> None:
    result = runner.invoke(app, [*COMMON, *PAIR], env=WIDE)
    for words in ("TTFT P50 / P90 / P99", "attainment, class all", "steps", "installed"):
        assert words in result.stdout
