"""Good checkpoints give a spec; every kind of bad one gives a ModelError that says why."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    PretrainedConfig,
    Qwen2Config,
)

from core.errors import ModelError
from engine.model import load_model, weights_digest
from tests.engine.architectures import SHAPE
from tests.engine.damages import DAMAGES, NAMES, cut_in_two, edit_json
from tests.engine.tiny import (
    EOS_TOKEN_ID,
    GREEDY,
    Answer,
    TinyModel,
    random_prompt,
    run_all,
    sample_spec,
)


def save(config: PretrainedConfig, directory: Path) -> Path:
    torch.manual_seed(2)
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(directory)
    return directory


def test_windows_of_some_layers_of_qwen2_equal_generate(tmp_path: Path) -> None:
    """The other architectures are in test_exactness_matrix."""
    windowed = Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=10, max_window_layers=1)
    model = TinyModel(save(windowed, tmp_path))
    prompts = [random_prompt(length, seed=length) for length in (30, 7)]
    answers = [Answer(p, tuple(range(i, 20, 2)), chunk=9) for i, p in enumerate(prompts)]
    run_all(model.runner(), answers, 16)
    assert [list(a.output) for a in answers] == [model.generate(p, 16) for p in prompts]


def test_attention_we_do_not_compute_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gemma2: not supported: score softcapping"):
        load_model(save(Gemma2Config(**SHAPE), tmp_path))


def test_spec_comes_from_the_config(tiny: TinyModel) -> None:
    spec = tiny.loaded.spec
    assert spec.architecture == "LlamaForCausalLM"
    assert (spec.num_layers, spec.num_query_heads, spec.num_kv_heads) == (2, 4, 2)
    assert (spec.head_dim, spec.hidden_size, spec.vocab_size) == (16, 64, 300)
    assert (spec.max_context_tokens, spec.dtype) == (512, "float32")
    assert spec.name == tiny.directory.name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_run(tiny: TinyModel, dtype: str) -> None:
    model = load_model(tiny.directory, dtype=dtype)
    assert model.spec.kv_bytes_per_token == tiny.loaded.spec.kv_bytes_per_token // 2
    narrow = TinyModel(tiny.directory)
    narrow.__dict__["loaded"] = model
    answers = [Answer(random_prompt(n, seed=n), tuple(range(n, n + 4)), 7) for n in (20, 9)]
    run_all(narrow.runner(), answers, 8)
    assert all(len(answer.output) == 8 for answer in answers)


@pytest.fixture
def copy(tiny: TinyModel, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(tiny.directory, tmp_path / "model"))


EOS = [
    # id                              config     generation  want
    ("generation_config wins", 5, [7, 9], (7, 9)),
    ("one id", 5, 7, (7,)),
    ("config alone", [5, 6], "no file", (5, 6)),
    ("generation_config silent", 5, None, (5,)),
    ("none anywhere", None, None, ()),
]


@pytest.mark.parametrize(
    ("in_config", "in_generation", "want"), [e[1:] for e in EOS], ids=[e[0] for e in EOS]
)
def test_eos_token_ids(
    copy: Path, in_config: object, in_generation: object, want: tuple[int, ...]
) -> None:
    edit_json(copy / "config.json", eos_token_id=in_config)
    generation = copy / "generation_config.json"
    edit_json(generation, eos_token_id=in_generation)
    if in_generation == "no file":
        generation.unlink()
    assert load_model(copy).spec.eos_token_ids == want


def test_digest_follows_the_weights(copy: Path, tiny: TinyModel) -> None:
    digest = tiny.loaded.spec.weights_digest
    assert load_model(copy).spec.weights_digest == digest
    assert len(digest) == 64
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert load_model(copy).spec.weights_digest != digest


def test_digest_covers_every_file_in_order(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_bytes(b"abc")
    second.write_bytes(b"d")
    assert weights_digest([first, second]) != weights_digest([second, first])
    assert weights_digest([first, second]) != weights_digest([first])


def test_shards_load_as_one_file_does(copy: Path, tiny: TinyModel) -> None:
    paths = cut_in_two(copy)
    (copy / "consolidated.safetensors").write_bytes(b"the same once more, in another format")
    loaded = load_model(copy)
    assert loaded.spec.weights_digest == weights_digest(paths)
    want = tiny.loaded.module.state_dict()
    assert loaded.module.state_dict().keys() == want.keys()
    for name, weight in loaded.module.state_dict().items():
        assert torch.equal(weight, want[name]), name


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_a_load_copies_no_weight(copy: Path) -> None:
    """Tensors stay in the mapped file, whose pages the digest has brought into memory."""
    weight = load_model(copy).module.state_dict()["model.norm.weight"]
    maps = Path("/proc/self/maps").read_text().splitlines()
    (mapped,) = {line.split()[-1] for line in maps if _holds(line, weight.data_ptr())}
    assert mapped == str(copy / "model.safetensors")


def _holds(line: str, address: int) -> bool:
    first, last = (int(end, 16) for end in line.split()[0].split("-"))
    return first <= address < last


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=NAMES)
def test_bad_checkpoints_say_what_is_wrong(
    copy: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(copy)
    with pytest.raises(ModelError, match=message):
        load_model(copy)


def test_architecture_without_attention_interface_is_refused(tmp_path: Path) -> None:
    config = BloomConfig(vocab_size=300, hidden_size=64, n_layer=2, n_head=4)
    with pytest.raises(ModelError, match="bloom: not supported: ALiBi position biases"):
        load_model(save(config, tmp_path))


def test_unknown_dtype_is_refused(tiny: TinyModel) -> None:
    with pytest.raises(ModelError, match="dtype int8 is not one of float32, bfloat16, float16"):
        load_model(tiny.directory, dtype="int8")


def test_eos_is_an_ordinary_token_to_the_runner(tiny: TinyModel) -> None:
    """Whether an answer ends is the caller's to say."""
    assert tiny.loaded.spec.eos_token_ids == (EOS_TOKEN_ID,)
    bias = {EOS_TOKEN_ID: 100.0}
    entry = Answer(random_prompt(5, seed=1), (0,)).next_entry()
    spec = sample_spec(sampling=type(GREEDY)(temperature=0, logit_bias=bias))
    biased = type(entry)(key="", token_ids=entry.token_ids, start=0, block_ids=(0,), sample=spec)
    assert tiny.runner().step([biased]).token_ids == (EOS_TOKEN_ID,)
