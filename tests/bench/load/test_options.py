"""A command line's words: what they mean, and all that is wrong with them at once."""

from math import inf
from pathlib import Path
from typing import Any

import pytest

from bench.load.endpoint import Endpoint
from bench.load.options import BenchOptions, Load
from bench.load.parsing import parse_headers, parse_slo
from bench.load.prompts import SharedPrefixes
from bench.load.workload import Drawn, Extent
from core.errors import ConfigError
from core.slo import Slo

HERE = Endpoint(url="http://127.0.0.1:1/v1")

PROBLEMS: list[tuple[str, dict[str, Any], str]] = [
    # id                  options                                        says
    ("nobody", {"endpoint": Endpoint()}, "one of --url and --grpc"),
    ("two", {"endpoint": Endpoint(url="http://a", grpc=("b:1",))}, "one of --url and --grpc"),
    ("no scheme", {"endpoint": Endpoint(url="localhost:1")}, "must begin with http://"),
    ("no such api", {"endpoint": Endpoint(url="http://a", api="x")}, "--api must be completions"),
    ("no such prompt", {"endpoint": Endpoint(url="http://a", prompt="x")}, "--prompt must be"),
    ("text to gRPC", {"endpoint": Endpoint(grpc=("a:1",), prompt="text")}, "takes token ids"),
    ("no such process", {"load": Load(process="x")}, "--arrivals must be one of poisson"),
    ("no rate", {"load": Load(rate_per_s=0.0)}, "--rate must be above 0"),
    ("no end", {"load": Load(duration_s=inf)}, "--duration must be above 0 and finite"),
    ("no requests", {"load": Load(num_requests=0)}, "--num-requests must be above 0"),
    ("stands still", {"load": Load(speed=-1.0)}, "--speed must be above 0"),
    ("no shape", {"load": Load(burstiness=0.0)}, "--burstiness must be above 0"),
    ("seed below 0", {"load": Load(seed=-1)}, "--seed must be at least 0"),
    ("two rates", {"load": Load(trace=Path("t"), rate_per_s=1.0)}, "--rate and --trace exclude"),
    ("no length", {"load": Load(prompt_tokens="x")}, "--prompt-tokens must be N, LOW:HIGH"),
    ("no lengths", {"load": Load(lengths=Path("nowhere"))}, "nowhere: cannot be read"),
    ("no prefix", {"load": Load(shared_prefix="0:4")}, "--shared-prefix must be two numbers"),
    ("no tokens", {"load": Load(vocabulary="9:3")}, "--token-ids must be LOW:HIGH"),
    ("no limit", {"slo": "ttft"}, "--slo must be like"),
    ("no such limit", {"slo": "itl=3"}, "of ttft, tpot, e2e; got 'itl=3'"),
    ("a limit of 0", {"slo": "ttft=0"}, "--slo must be like"),
    ("nothing to attain", {"finds_goodput": True}, "--find-goodput needs --slo"),
    ("target", {"target": 1.0}, "--target must be between 0 and 1"),
    ("precision", {"precision": 0.0}, "--precision must be between 0 and 1"),
    ("timeout", {"timeout_s": 0.0}, "--timeout and --max-in-flight"),
    ("guard", {"max_in_flight": 0}, "--timeout and --max-in-flight"),
    ("all warm-up", {"warmup_s": 30.0}, "--warmup must be at least 0 and below the duration of 30"),
]


@pytest.mark.parametrize(("given", "says"), [c[1:] for c in PROBLEMS], ids=[c[0] for c in PROBLEMS])
def test_problems(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BenchOptions(**{"endpoint": HERE, **given}).check()
    (problem,) = caught.value.problems
    assert says in problem


def test_all_problems_are_told_at_once() -> None:
    options = BenchOptions(endpoint=Endpoint(), load=Load(rate_per_s=0.0), slo="x")
    with pytest.raises(ConfigError) as caught:
        options.check()
    assert len(caught.value.problems) == 3


def test_the_defaults_are_fine() -> None:
    BenchOptions(endpoint=HERE).check()
    BenchOptions(endpoint=HERE, slo="ttft=1", finds_goodput=True).check()


SLOS = [
    ("", None),
    ("ttft=0.5", Slo(ttft_s=0.5)),
    ("ttft=0.5, tpot=5e-2,e2e=9", Slo(ttft_s=0.5, tpot_s=0.05, e2e_s=9.0)),
]


@pytest.mark.parametrize(("text", "want"), SLOS)
def test_slos(text: str, want: Slo | None) -> None:
    assert parse_slo(text) == want


def test_headers() -> None:
    assert parse_headers(["A: b:c", "D:"]) == {"A": "b:c", "D": ""}
    with pytest.raises(ConfigError, match="NAME:VALUE") as caught:
        parse_headers(["secret"])
    assert "secret" not in str(caught.value)


EXTENTS = [
    # id                    load                                     extent
    ("as it is", Load(), Extent(duration_s=30.0)),
    ("so many", Load(num_requests=9), Extent(max_requests=9)),
    ("whichever", Load(num_requests=9, duration_s=5.0), Extent(duration_s=5.0, max_requests=9)),
    ("a whole trace", Load(trace=Path("t")), Extent()),
    ("a piece of it", Load(trace=Path("t"), duration_s=5.0), Extent(duration_s=5.0)),
]


@pytest.mark.parametrize(("load", "want"), [c[1:] for c in EXTENTS], ids=[c[0] for c in EXTENTS])
def test_extents(load: Load, want: Extent) -> None:
    assert load.extent == want


WARMUPS: list[tuple[str, dict[str, Any], float]] = [
    ("none", {}, 0.0),
    ("as given", {"warmup_s": 2.0}, 2.0),
    ("of a search", {"finds_goodput": True, "slo": "ttft=1"}, 7.5),
    ("of a search, none", {"finds_goodput": True, "slo": "ttft=1", "warmup_s": 0.0}, 0.0),
    ("of no known end", {"finds_goodput": True, "load": Load(num_requests=9)}, 0.0),
]


@pytest.mark.parametrize(("given", "want"), [c[1:] for c in WARMUPS], ids=[c[0] for c in WARMUPS])
def test_warm_ups(given: dict[str, Any], want: float) -> None:
    assert BenchOptions(endpoint=HERE, **given).conditions.warmup_s == want


def test_a_trace_has_a_rate_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n1,1,1\n4,1,1\n")
    load = Load(trace=path, speed=2.0)
    assert load.rate_of(load.source()) == pytest.approx(2 * 3 / 4)
    assert Load().rate_of(Load().source()) == 1.0
    assert isinstance(Load(lengths=path).source(), Drawn)


def test_a_search_ends_where_too_little_would_arrive() -> None:
    options = BenchOptions(endpoint=HERE, slo="ttft=1", finds_goodput=True)
    assert options.search(4.0).least_rate_per_s == pytest.approx(10 / 22.5)
    unbounded = BenchOptions(endpoint=HERE, load=Load(num_requests=9))
    assert unbounded.search(4.0).least_rate_per_s == 0.0


def test_runs_of_a_search_share_no_prompt() -> None:
    load = Load(shared_prefix="3:5", vocabulary="10:20", seed=4)
    prompts = load.prompts()
    assert (prompts.shared, prompts.vocabulary) == (
        SharedPrefixes(num_prefixes=3, num_tokens=5),
        range(10, 20),
    )
    seeds = {Load(seed=seed).prompts(offset).seed for seed in range(9) for offset in range(9)}
    assert len(seeds) == 81
