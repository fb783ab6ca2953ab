"""What a plan leaves behind: plan.toml, its settings, its load, and the forecast to check it by."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.slo import Slo
from planner.ask.ask import Setup
from planner.report.document import as_json, measures_document, ranked_document
from planner.report.load import Load, forecast
from planner.report.plan_file import config_toml, plan_toml
from planner.search.fleet import cluster_of
from planner.search.inputs import Simulate
from planner.search.results import Ranked

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFiles:
    """All beside one another, named after the first."""

    plan: Path

    @property
    def config(self) -> Path:
        """Settings with which instances work as simulated."""
        return self._beside("config.toml")

    @property
    def load(self) -> Path:
        """Requests, for `baton bench --trace`."""
        return self._beside("load.csv")

    @property
    def forecast(self) -> Path:
        """What that load is said to come to."""
        return self._beside("forecast.json")

    def _beside(self, name: str) -> Path:
        return self.plan.with_name(f"{self.plan.stem}.{name}")


def write_plan(
    files: PlanFiles, setup: Setup, ranked: Ranked, load: Load, simulate: Simulate
) -> None:
    """Raises OSError."""
    seen = forecast(simulate, cluster_of(setup.fleet, ranked.candidate), load, setup.workload)
    files.plan.write_text(plan_toml(setup, ranked.candidate), encoding="utf-8")
    files.config.write_text(config_toml(setup, ranked.candidate), encoding="utf-8")
    load.write(files.load)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "model": setup.model.shape.name,
        "check": commands(files, setup, ranked),
        "of_this_load": measures_document(seen),
        "in_steady_state": ranked_document(ranked),
    }
    files.forecast.write_text(as_json(document) + "\n", encoding="utf-8")


def commands(files: PlanFiles, setup: Setup, ranked: Ranked) -> list[str]:
    """Start the plan, and check its forecast."""
    model = [] if setup.model.folder else ["--model", "FOLDER"]
    serve = ["baton", "serve", "--plan", str(files.plan), "--config", str(files.config)]
    classes = setup.workload.classes
    bench = [
        *("baton", "bench", "--url", "http://127.0.0.1:8000/v1", "--trace", str(files.load)),
        # Of several classes the load does not say which request is of which.
        *(("--slo", slo_text(classes[0].slo)) if len(classes) == 1 else ()),
        *("--gpus", str(ranked.candidate.num_gpus)),
    ]
    return [shlex.join([*serve, *model, "--http-port", "8000"]), shlex.join(bench)]


def slo_text(slo: Slo) -> str:
    """As `--slo` takes it."""
    limits = {"ttft": slo.ttft_s, "tpot": slo.tpot_s, "e2e": slo.e2e_s}
    return ",".join(f"{name}={limit:g}" for name, limit in limits.items() if limit is not None)
