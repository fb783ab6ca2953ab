"""The files that come with Baton, and Mooncake's traces: what is published of them."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from core.errors import ConfigError
from core.slo import Slo
from planner.sim.traffic import Traffic
from planner.workload.arrivals import Gaps
from planner.workload.lengths import Pairs, Recorded
from planner.workload.prefix import hit_curve, hit_ratio
from planner.workload.presets import PRESETS, load_lengths, load_workload
from planner.workload.summary import Spread, summarise
from planner.workload.workload import Workload
from tests.planner.workload.test_prefix import num_hits

MOONCAKE = Path(__file__).parents[1] / "data" / "mooncake"


@cache
def loaded(name: str) -> Workload:
    path = MOONCAKE / f"{name}_trace.jsonl.gz"
    return load_workload(str(path) if path.exists() else name)


def whole(name: str) -> Traffic:
    """As recorded."""
    workload = loaded(name)
    lengths = workload.classes[0].lengths
    assert isinstance(lengths, Recorded)
    return workload.traffic(workload.natural_rate_per_s or 0.0, len(lengths.trace.at_s))


TRACES = [
    # name            rows   span  rate  variation prompts                             outputs
    (
        *("azure-code", 8819, 3436, 2.57, 13.15),
        *((2047.8, 1469, 5188, 7436, 7437), (27.9, 13, 55, 251, 1899)),
    ),
    (
        *("azure-conv", 19366, 3502, 5.53, 1.09),
        *((1154.7, 1020, 2735, 4142, 14050), (211.1, 129, 424, 601, 1000)),
    ),
    (
        *("conversation", 12031, 3537, 3.40, None),
        *((12035, 6909, 27367, 85400, 126195), (342.6, 350, 597, 1119, 2000)),
    ),
    (
        *("synthetic", 3993, 1022, 3.91, None),
        *((15326, 11587, 38611, 66456, 191378), (149.1, 69, 389, 768, 893)),
    ),
]
Published = tuple[float, float, float, float, float]


def assert_spread(got: Spread, want: Published) -> None:
    """To the digits that are printed."""
    mean, *quantiles = want
    assert got.mean == pytest.approx(mean, abs=0.6 if mean > 9999 else 0.051)
    assert [got.p50, got.p90, got.p99, got.max] == pytest.approx(quantiles, abs=0.51)


@pytest.mark.parametrize(("name", "num", "span_s", "rate", "variation", "prompt", "output"), TRACES)
def test_traces(
    name: str,
    num: int,
    span_s: float,
    rate: float,
    variation: float | None,
    prompt: Published,
    output: Published,
) -> None:
    summary = summarise(whole(name))
    assert summary.num_requests == num
    assert summary.span_s == pytest.approx(span_s, abs=0.5)
    assert summary.rate_per_s == pytest.approx(rate, abs=0.006)
    if variation is not None:
        assert summary.gap_variation == pytest.approx(variation, abs=0.005)
    assert_spread(summary.prompt, prompt)
    assert_spread(summary.output, output)


LENGTHS: list[tuple[str, int, tuple[float, ...], tuple[float, ...]]] = [
    # name         rows    prompts                           outputs
    ("humaneval", 164, (171.35, 146.5, 278), (98.17, 79, 194)),
    ("sharegpt", 12088, (767.1, 695, 1555, 1940, 2029), (198.8, 92, 520, 1007, 1776)),
]


@pytest.mark.parametrize(("name", "num", "prompt", "output"), LENGTHS)
def test_lengths(name: str, num: int, prompt: tuple[float, ...], output: tuple[float, ...]) -> None:
    workload = loaded(name)
    pairs = workload.classes[0].lengths
    assert isinstance(pairs, Pairs)
    for column, mean, want in (
        (pairs.num_prompt_tokens, workload.mean_prompt_tokens, prompt),
        (pairs.num_output_tokens, workload.mean_output_tokens, output),
    ):
        assert len(column) == num
        assert mean == pytest.approx(want[0], abs=0.05)
        quantiles = np.quantile(column, (0.5, 0.9, 0.99, 1.0))[: len(want) - 1]
        assert list(quantiles) == pytest.approx(want[1:], abs=1.0)


# --- Mooncake's prefixes ------------------------------------------------------------------------

HITS = [("conversation", 0.366), ("synthetic", 0.640)]


@pytest.mark.parametrize(("name", "want"), HITS)
def test_hits_without_bound_are_those_published(name: str, want: float) -> None:
    assert hit_ratio(whole(name)) == pytest.approx(want, abs=0.0005)


@pytest.mark.parametrize(("name", "want"), HITS)
def test_another_round_hits_as_much_and_no_more(name: str, want: float) -> None:
    workload = loaded(name)
    twice = workload.traffic(5.0, 2 * len(whole(name).arrival_ps))
    assert hit_ratio(twice) == pytest.approx(hit_ratio(whole(name)))


@pytest.mark.parametrize("name", ["synthetic"])
def test_hits_of_caches_of_every_size(name: str) -> None:
    traffic = whole(name)
    prompts = [each.tolist() for each in np.split(traffic.blocks, traffic.first_block[1:-1])]
    sizes = [0, 100, 3000, 30_000]
    want = [num_hits(prompts, size) / len(traffic.blocks) for size in sizes]
    assert hit_curve(traffic, sizes).tolist() == want


def test_blocks_cover_prompts() -> None:
    traffic = whole("conversation")
    assert traffic.block_tokens == 512
    assert (np.diff(traffic.first_block) == -(-traffic.num_prompt_tokens // 512)).all()
    assert np.unique(traffic.blocks).tolist() == list(range(182_790))


# --- loading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_what_they_are_asked_for(name: str) -> None:
    slo = Slo(ttft_s=1.0)
    workload = load_workload(name, slo=slo, target=0.95)
    assert workload.name == name
    assert (workload.slos, workload.classes[0].target) == ((slo,), 0.95)
    assert workload.describe().startswith(f"{name}: arrivals ")
    assert PRESETS[name].about


def test_a_trace_at_other_moments_keeps_its_order() -> None:
    workload = load_workload("azure-conv", arrivals=Gaps(process="constant"))
    traffic, recorded = workload.traffic(8.0, 100), whole("azure-conv")
    assert (np.diff(traffic.arrival_ps) == 10**12 // 8).all()
    assert (traffic.num_prompt_tokens == recorded.num_prompt_tokens[:100]).all()


def test_a_mix_of_a_million_requests_has_the_trace_s_lengths() -> None:
    mix = loaded("azure-conv").resampled().traffic(1000.0, 1_000_000, 1)
    got, want = summarise(mix), summarise(whole("azure-conv"))
    assert got.rate_per_s == pytest.approx(1000.0, rel=0.005)
    for ours, theirs in ((got.prompt, want.prompt), (got.output, want.output)):
        assert ours.mean == pytest.approx(theirs.mean, rel=0.005)
        assert ours.p90 == pytest.approx(theirs.p90, rel=0.01)


def test_a_file_of_lengths(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("prompt_tokens,output_tokens\n5,6\n")
    workload = load_workload(str(tmp_path / "l.csv"))
    assert (workload.name, workload.natural_rate_per_s) == ("l.csv", None)
    assert workload.traffic(1.0, 3).num_output_tokens.tolist() == [6, 6, 6]
    assert load_lengths(str(tmp_path / "l.csv")).mean_prompt_tokens == 5


def test_neither_a_name_nor_a_file() -> None:
    with pytest.raises(ConfigError, match="'azure' is neither a file nor one of sharegpt, humane"):
        load_workload("azure")
