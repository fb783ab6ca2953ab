"""Which latency model answers, and what is said where none does."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import ConfigError, NoProfile
from core.parallel import ParallelLayout
from core.profile import ALONE, LOADED, Profile
from planner.ask.latency import Latency, Times, source_of
from planner.ask.model import find_model
from policy.hardware import gpu
from policy.model_files import presets
from policy.step_times import prefill_s
from tests.core.profiles import condition, profile

KNOWN = [
    # latency            model          GPU             named
    (Latency.ROOFLINE, "mixtral-8x7b", "h200", "by the roofline"),
    (Latency.DISTSERVE, "opt-13b", "a100-80g-sxm", "its distserve engine"),
    (Latency.VLLM, "opt-66b", "a100-80g-sxm", "its vllm engine"),
    (Latency.SPLITWISE, "bloom-176b", "h100-80g-sxm", "fit of Splitwise's"),
]


@pytest.mark.parametrize(("latency", "model", "key", "named"), KNOWN)
def test_known(latency: Latency, model: str, key: str, named: str) -> None:
    source = source_of(Times(latency=latency), find_model(model), key, gpu(key))
    assert named in source.name
    assert source.layouts()


MISSING = [
    # latency            model            GPU             there is
    (Latency.DISTSERVE, "llama-3.1-8b", "a100-80g-sxm", ("opt-13b", "opt-66b")),
    (Latency.DISTSERVE, "opt-13b", "h200", ("a100-80g-sxm",)),
    (Latency.SPLITWISE, "opt-13b", "h100-80g-sxm", ("bloom-176b", "llama-2-70b")),
    (Latency.MEASURED, "opt-13b", "l4", ()),
]


@pytest.mark.parametrize(("latency", "model", "key", "there_is"), MISSING)
def test_missing(latency: Latency, model: str, key: str, there_is: tuple[str, ...]) -> None:
    with pytest.raises(NoProfile) as caught:
        source_of(Times(latency=latency), find_model(model), key, gpu(key))
    assert caught.value.available == there_is
    assert "baton profile" in caught.value.remedy


ONE = ParallelLayout()
ON_A_GPU = replace(profile(), subject=replace(profile().subject, device="cuda"))
CONDITIONS = [
    # who is measured                  whose times count
    (profile(), LOADED),
    (profile(condition()), ALONE),
    (ON_A_GPU, ALONE),
]


@pytest.mark.parametrize(("measured", "name"), CONDITIONS)
def test_instances_that_share_a_processor_are_as_fast_as_with_neighbours(
    measured: Profile, name: str, tmp_path: Path
) -> None:
    (path := tmp_path / "profile.json").write_text(measured.to_json())
    times = Times(latency=Latency.MEASURED, profile=path)
    source = source_of(times, find_model("smollm2-135m"), "", None)
    assert source.name.endswith(f"measured {name}")
    assert prefill_s(source.times(ONE), 100, 0.0) == pytest.approx(2.0 if name is LOADED else 1.0)


def test_instances_grow_beyond_a_host_only_where_weights_need_it() -> None:
    times = Times(most_gpus=32)
    large = source_of(times, find_model("llama-3.1-405b"), "h100-80g-sxm", gpu("h100-80g-sxm"))
    small = source_of(times, find_model("llama-3.1-8b"), "h100-80g-sxm", gpu("h100-80g-sxm"))
    assert max(each.num_workers for each in large.layouts()) == 16
    assert max(each.num_workers for each in small.layouts()) == 8


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_found(name: str) -> None:
    assert find_model(name).shape.num_layers > 0


def test_other_types_are_smaller() -> None:
    plain, small = find_model("llama-3.1-8b"), find_model("llama-3.1-8b", weight_dtype="fp8")
    assert small.shape.weight_bytes == plain.shape.weight_bytes / 2


def test_a_folder_with_weights_is_what_can_be_served(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
        "max_position_embeddings": 256, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert find_model(str(tmp_path)).folder == ""
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert find_model(str(tmp_path / "config.json")).folder == str(tmp_path)


def test_unknown_types_and_files_are_problems() -> None:
    with pytest.raises(ConfigError, match=r"--weight-dtype must be of.*\n--kv-dtype"):
        find_model("llama-3.1-8b", weight_dtype="int2", kv_dtype="x")
    with pytest.raises(ConfigError, match="no such file or folder"):
        find_model("nowhere/config.json")
