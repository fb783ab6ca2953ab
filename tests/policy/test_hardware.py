"""The catalogue of GPUs: every number sourced, any of them overridden, all problems at once."""

import re
from pathlib import Path

import pytest

from core.errors import ConfigError, NoProfile
from policy.hardware import GROUPS, catalogue, gpu

GPUS = catalogue()


@pytest.mark.parametrize("key", GPUS)
def test_every_number_has_a_source_with_a_date(key: str) -> None:
    for source in GROUPS:
        text = getattr(GPUS[key], source)
        assert re.search(r"20\d\d", text) or text.startswith("assumed: "), (key, source, text)


@pytest.mark.parametrize("key", GPUS)
def test_numbers_are_of_a_gpu(key: str) -> None:
    """Bounds that a slipped power of ten, or a rate with sparsity, breaks."""
    found = GPUS[key]
    assert 15 < found.memory_bytes / 2**30 < 300
    assert 50 < found.bf16_flops_per_s / found.memory_bytes_per_s < 450
    for rate in (found.fp8_flops_per_s, found.int8_ops_per_s):
        assert rate == 0 or 1.95 < rate / found.bf16_flops_per_s < 2.05
    assert 0.04 < found.idle_w / found.tdp_w < 0.4
    assert found.idle_w < found.decode_w < found.prefill_w == found.tdp_w
    assert found.price_per_hour < 10
    assert found.network_bytes_per_s < found.link_bytes_per_s < found.memory_bytes_per_s


def test_rates_by_weight_type() -> None:
    h100, a100 = GPUS["h100-80g-sxm"], GPUS["a100-80g-sxm"]
    rates = {dtype: h100.flops_per_s(dtype) / 1e12 for dtype in ("bfloat16", "fp8", "int4")}
    assert rates == {"bfloat16": 989.4, "fp8": 1978.9, "int4": 989.4}
    assert a100.flops_per_s("fp8") == a100.flops_per_s("float16") == 312e12
    assert a100.flops_per_s("float32") == 156e12


def test_a_file_overrides_single_numbers(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[gpus.h200]\nprice_per_hour = 2.5\ncurrency = 'EUR'\n")
    mine = gpu("h200", path)
    assert (mine.price_per_hour, mine.currency, mine.price_source) == (2.5, "EUR", "mine.toml")
    assert mine.bf16_flops_per_s == GPUS["h200"].bf16_flops_per_s
    assert mine.spec_source == GPUS["h200"].spec_source


def test_a_file_adds_a_gpu(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        [sources]
        lab = "measured in our lab, May 2026"
        [gpus.x1]
        name = "X1"
        bf16_flops_per_s = 1e14
        memory_bytes = 1_000_000_000
        memory_bytes_per_s = 1e12
        link = "none"
        link_bytes_per_s = 1e9
        network_bytes_per_s = 1e9
        tdp_w = 100
        idle_w = 10
        idle_source = "lab"
        price_per_hour = 1
        """
    )
    found = gpu("x1", path)
    assert found.idle_source == "measured in our lab, May 2026"
    assert found.memory_source == "mine.toml"
    assert set(catalogue(path)) == {*GPUS, "x1"}


WRONG = """
gpu = 1
[gpus.h200]
price_per_hour = -1
colour = "green"
[gpus.l4]
tdp_w = "many"
[gpus.a10g]
idle_w = 301
memory_bytes = 0
[gpus.new]
name = "New"
"""


def test_all_problems_at_once(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(WRONG)
    with pytest.raises(ConfigError) as caught:
        catalogue(path, tmp_path / "missing.toml")
    problems = "\n".join(caught.value.problems)
    for expected in (
        "unknown key 'gpu'",
        "gpus.h200: unknown key 'colour'",
        "gpus.l4: tdp_w must be float, got str",
        "gpus.a10g: memory_bytes must be above 0, got 0",
        "gpus.a10g: idle_w must not be above tdp_w, got 301.0 and 300.0",
        "gpus.new: ",
        "missing.toml",
    ):
        assert expected in problems


BROKEN = [
    ("[gpus", "mine.toml: "),
    ("gpus = 1", "gpus must be a table"),
    ("[gpus]\nh200 = 1", "gpus.h200 must be a table"),
]


@pytest.mark.parametrize(("text", "says"), BROKEN)
def test_a_file_that_is_none(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(says)):
        catalogue(path)


def test_an_unknown_gpu_is_said_with_what_there_is() -> None:
    with pytest.raises(NoProfile, match=r"'h300'; there is a100-40g-sxm, .*mi355x; describe it"):
        gpu("h300")
