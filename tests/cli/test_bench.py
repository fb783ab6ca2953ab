"""`baton bench`: its help, its refusals, and what of its options reaches the load generator."""

import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import bench.load.session
from bench.load.endpoint import Endpoint
from bench.load.options import BenchOptions, Load
from bench.load.session import LoadResult
from cli.main import app
from core.errors import PeerLost

runner = CliRunner()
URL = "http://127.0.0.1:9/v1"


def test_help_is_for_a_newcomer() -> None:
    result = runner.invoke(app, ["bench", "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    for words in ("baton bench --url http", "--find-goodput", "docs/benchmarking.md", "poisson"):
        assert words in result.output


REFUSED = [
    # id             arguments                                  says
    ("nobody", [], "CONFIG_ERROR: one of --url and --grpc"),
    ("two problems", ["--url", URL, "--slo", "x", "--rate", "0"], "--rate must be above 0"),
    ("no number", ["--url", URL, "--rate", "often"], "--rate"),
    ("no folder", ["--url", URL, "--html", "nowhere/r.html"], "there is no folder nowhere"),
    ("bad header", ["--url", URL, "--header", "x"], "NAME:VALUE"),
    ("nobody there", ["--url", URL], f"PEER_LOST: {URL}/models"),
    ("no server", ["--url", URL, "--model", "m"], "PROBE_FAILED: the first request failed"),
    ("no trace", ["--url", URL, "--trace", "nowhere.csv"], "nowhere.csv: cannot be read"),
]


@pytest.mark.parametrize(
    ("arguments", "says"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_refused(arguments: list[str], says: str) -> None:
    result = runner.invoke(app, ["bench", *arguments], env={"COLUMNS": "120"})
    assert result.exit_code in (1, 2)
    assert says in result.output
    assert "Traceback" not in result.output


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[BenchOptions]:
    """What the load generator is told; it then finds nobody."""
    options = list[BenchOptions]()

    async def note(given: BenchOptions, _: object) -> LoadResult:
        options.append(given)
        raise PeerLost("as planned")

    monkeypatch.setattr(bench.load.session, "run_bench", note)
    monkeypatch.setattr("rpc.process.keep_what_is_loaded", lambda: None)
    return options


def test_the_command_line_has_the_defaults_of_the_options(asked: list[BenchOptions]) -> None:
    assert runner.invoke(app, ["bench", "--url", URL]).exit_code == 1
    assert asked == [BenchOptions(endpoint=Endpoint(url=URL))]


GIVEN: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # arguments                                endpoint                   load  others
    ("--no-ignore-eos --api chat", {"ignore_eos": False, "api": "chat"}, {}, {}),
    ("--no-usage-per-chunk", {"usage_per_chunk": False}, {}, {}),
    ("--prompt text --model m", {"prompt": "text", "model": "m"}, {}, {}),
    ("--header A:b --header C:d", {"headers": {"A": "b", "C": "d"}}, {}, {}),
    ("--rate 3 --seed 5 --duration 9", {}, {"rate_per_s": 3.0, "seed": 5, "duration_s": 9.0}, {}),
    ("--arrivals gamma --burstiness 0.2", {}, {"process": "gamma", "burstiness": 0.2}, {}),
    ("--trace t.csv --speed 2", {}, {"trace": Path("t.csv"), "speed": 2.0}, {}),
    (
        "--prompt-tokens 1:9 --output-tokens 3",
        {},
        {"prompt_tokens": "1:9", "output_tokens": "3"},
        {},
    ),
    ("--lengths l.csv --num-requests 7", {}, {"lengths": Path("l.csv"), "num_requests": 7}, {}),
    ("--shared-prefix 2:8 --token-ids 5:9", {}, {"shared_prefix": "2:8", "vocabulary": "5:9"}, {}),
    ("--slo ttft=1 --warmup 2", {}, {}, {"slo": "ttft=1", "warmup_s": 2.0}),
    ("--timeout 4 --max-in-flight 6", {}, {}, {"timeout_s": 4.0, "max_in_flight": 6}),
    ("--find-goodput --target 0.8", {}, {}, {"finds_goodput": True, "target": 0.8}),
    ("--precision 0.2 --gpus 4", {}, {}, {"precision": 0.2, "num_gpus": 4}),
]


@pytest.mark.parametrize(("line", "endpoint", "load", "others"), GIVEN, ids=[c[0] for c in GIVEN])
def test_what_is_given_is_asked(
    line: str,
    endpoint: dict[str, Any],
    load: dict[str, Any],
    others: dict[str, Any],
    asked: list[BenchOptions],
) -> None:
    runner.invoke(app, ["bench", "--url", URL, *line.split()])
    whom = Endpoint(**{"url": URL, **endpoint})
    assert asked == [BenchOptions(endpoint=whom, load=Load(**load), **others)]


def test_routers_are_named_one_by_one(asked: list[BenchOptions]) -> None:
    runner.invoke(app, ["bench", "--grpc", "a:1", "--grpc", "b:2"])
    assert asked == [BenchOptions(endpoint=Endpoint(grpc=("a:1", "b:2")))]


def test_the_base_installation_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("bench.load")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    result = runner.invoke(app, ["bench", "--url", URL])
    assert result.exit_code == 4
    assert "pip install -e '.[serve]'" in result.output
