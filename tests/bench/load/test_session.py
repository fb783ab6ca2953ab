"""From options to files, against the reference server; what is written, not how long it took."""

import csv
import json
import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bench.load.endpoint import Endpoint
from bench.load.files import COLUMNS, write_csv, write_json
from bench.load.goodput import Goodput, Point
from bench.load.html import write_html
from bench.load.measures import Window, measure
from bench.load.options import BenchOptions, Load
from bench.load.reference_server import ReferenceSpec, application
from bench.load.run import LoadRun, ProbeFailed
from bench.load.session import LoadResult, run_bench
from bench.load.show import show
from bench.load.workload import Workload
from core.errors import ConfigError
from core.slo import Slo
from planner.search.intervals import share
from planner.workload.trace import TraceRow, read_trace
from tests.bench.load.outcomes import IDLE, outcome
from tests.bench.load.test_http_target import refuse, saying, served

AT_ONCE = ReferenceSpec(ttft_s=0.0, gap_s=0.0)
SECRET = "a key that nobody should read"


def run_of(rate_per_s: float) -> LoadRun:
    outcomes = [outcome(i / 10, ttft_s=0.2 + i / 1000) for i in range(95)]
    outcomes += [outcome(9.5 + i / 10, num_tokens=2, error="HTTP_429") for i in range(5)]
    row = TraceRow(at_s=0.0, num_prompt_tokens=100, num_output_tokens=5)
    return LoadRun(
        workload=Workload(rows=[row] * 100, duration_s=10.0, rate_per_s=rate_per_s),
        outcomes=outcomes,
        measures=measure(
            outcomes,
            window=Window(from_s=2.0, to_s=10.0),
            limits=Slo(ttft_s=0.29),
            cpu=IDLE,
        ),
    )


@pytest.fixture
def result() -> LoadResult:
    endpoint = Endpoint(url="http://somewhere:1/v1", headers={"Authorization": SECRET})
    points = [
        Point(rate_per_s=rate, attainment=share(hits, 100), is_steady=True)
        for rate, hits in ((4.0, 98), (8.0, 40), (6.0, 91))
    ]
    return LoadResult(
        options=BenchOptions(endpoint=endpoint, slo="ttft=0.29", finds_goodput=True, num_gpus=2),
        runs=[run_of(rate) for rate in (4.0, 8.0, 6.0)],
        goodput=Goodput(points=points, target=0.9),
    )


def test_json_holds_everything_but_secrets(result: LoadResult, tmp_path: Path) -> None:
    write_json(result, tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    document = json.loads(text)
    assert SECRET not in text
    assert document["options"]["endpoint"]["headers"] == ["Authorization"]
    assert (document["goodput"]["low_per_s"], document["goodput"]["high_per_s"]) == (6.0, 8.0)
    assert document["goodput"]["goodput_rps_per_gpu"] == 3.0
    assert [point["attains"] for point in document["goodput"]["points"]] == [True, False, True]
    run = document["runs"][0]
    assert run["rate_per_s"] == 4.0
    assert run["num_arrived"] - run["num_answered"] == run["failures"][0]["count"] == 5
    assert set(run["latencies_s"]) == {"ttft", "first_gap", "tpot", "e2e", "itl"}


def test_what_is_not_known_is_null(tmp_path: Path) -> None:
    points = [Point(rate_per_s=1.0, attainment=share(9, 9), is_steady=True)]
    found = Goodput(points=points, target=0.9)
    options = BenchOptions(endpoint=Endpoint(grpc=("a:1",)))
    write_json(LoadResult(options=options, runs=[], goodput=found), tmp_path / "r.json")
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["goodput"]["high_per_s"] is None
    assert document["goodput"]["goodput_rps_per_gpu"] is None


def test_csv_has_a_row_for_each_request(result: LoadResult, tmp_path: Path) -> None:
    write_csv(result, tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 300
    first, last = rows[0], rows[-1]
    assert (first["counted"], last["counted"]) == ("0", "1")
    assert float(first["ttft_s"]) == pytest.approx(0.2)
    assert float(first["tpot_s"]) == pytest.approx(0.1)
    assert (last["error"], last["ttft_s"], last["num_output_tokens"]) == ("HTTP_429", "", "2")


def test_csv_of_one_run_is_a_trace_of_what_was_offered(tmp_path: Path) -> None:
    run = run_of(4.0)
    write_csv(LoadResult(options=BenchOptions(endpoint=Endpoint()), runs=[run]), tmp_path / "r.csv")
    rows = read_trace(tmp_path / "r.csv")
    assert [row.at_s for row in rows] == pytest.approx(
        [o.at_s - run.outcomes[0].at_s for o in run.outcomes]
    )
    assert {row.num_prompt_tokens for row in rows} == {100}
    # Failed ones too, with the answers they would have had.
    assert [row.num_output_tokens for row in rows] == [
        o.max_tokens if o.error else o.answer.num_output_tokens for o in run.outcomes
    ]


def test_csv_of_a_search_is_no_trace(result: LoadResult, tmp_path: Path) -> None:
    write_csv(result, tmp_path / "r.csv")
    with pytest.raises(ConfigError, match="holds 3 runs, a trace is one: keep the rows of one r"):
        read_trace(tmp_path / "r.csv")


def test_html_needs_nothing_else(result: LoadResult, tmp_path: Path) -> None:
    write_html(result, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert text.count("<svg") == text.count("</svg>") == 4
    assert "goodput: 6 requests/s (3 per GPU) attained 90%, 8 did not" in text
    assert "HTTP_429" in text
    assert SECRET not in text
    # Of addresses, only the names that SVG gives its own words; nothing is loaded from them.
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', text)


def test_html_escapes_what_servers_say(tmp_path: Path) -> None:
    options = BenchOptions(endpoint=Endpoint(url="http://<b>"))
    write_html(LoadResult(options=options, runs=[run_of(1.0)]), tmp_path / "r.html")
    assert "<b>" not in (tmp_path / "r.html").read_text()


def test_html_of_nothing_but_failures(tmp_path: Path) -> None:
    outcomes = [outcome(1.0, num_tokens=0, error="PEER_LOST")]
    window = Window(from_s=0.0, to_s=1.0)
    run = LoadRun(
        workload=Workload(rows=[], duration_s=1.0, rate_per_s=1.0),
        outcomes=outcomes,
        measures=measure(outcomes, window=window, limits=None, cpu=IDLE),
    )
    result = LoadResult(options=BenchOptions(endpoint=Endpoint(url="http://a")), runs=[run])
    write_html(result, tmp_path / "r.html")
    assert "<svg" not in (tmp_path / "r.html").read_text()
    show(result, Console(file=StringIO()))


def test_a_terminal_shows_the_run_of_the_goodput(result: LoadResult) -> None:
    console = Console(file=StringIO(), width=120, highlight=False)
    show(result, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "6 requests/s" in text
    assert "goodput: 6 requests/s" in text
    assert "5 × HTTP_429: why 9.5" in text
    for name in ("TTFT", "first gap", "TPOT", "ITL", "end to end", "sent late"):
        assert name in text


async def test_a_whole_run() -> None:
    async with served(application(AT_ONCE)) as url:
        load = Load(rate_per_s=200.0, num_requests=30, prompt_tokens="1:9", output_tokens="4")
        options = BenchOptions(endpoint=Endpoint(url=url), load=load, slo="ttft=100")
        result = await run_bench(options, lambda _: None)
    (run,) = result.runs
    assert result.shown is run
    assert [len(o.answer.times_s) for o in run.outcomes] == [4] * 30
    assert (run.measures.num_arrived, run.measures.failures) == (30, ())
    assert run.measures.attainment == share(30, 30)


async def test_a_whole_search() -> None:
    async with served(application(AT_ONCE)) as url:
        load = Load(process="constant", rate_per_s=500.0, num_requests=3, output_tokens="1")
        options = BenchOptions(
            # No answer is that fast: every rate misses.
            endpoint=Endpoint(url=url),
            load=load,
            slo="ttft=1e-9",
            finds_goodput=True,
        )
        result = await run_bench(options, lambda _: None)
    assert result.goodput is not None
    assert result.goodput.low_per_s == 0.0
    assert len(result.runs) == len(result.goodput.points)
    assert result.shown is result.runs[0]


async def test_nothing_is_measured_of_a_server_that_refuses() -> None:
    async with served(saying(refuse)) as url:
        options = BenchOptions(endpoint=Endpoint(url=url, model="m"))
        with pytest.raises(ProbeFailed, match=r"HTTP_429.*too busy"):
            await run_bench(options, lambda _: None)


async def test_a_warm_up_that_drops_everything() -> None:
    async with served(application(AT_ONCE)) as url:
        load = Load(rate_per_s=100.0, num_requests=3, output_tokens="1")
        options = BenchOptions(endpoint=Endpoint(url=url), load=load, warmup_s=60.0)
        with pytest.raises(ConfigError, match="drops every request"):
            await run_bench(options, lambda _: None)
