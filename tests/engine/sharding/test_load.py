"""However a checkpoint is written, a rank gets the same part of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.parallel import ParallelLayout, RankPlace, split
from engine.model import load_model
from engine.sharding import LoadedShard, StageModule, load_shard
from tests.engine.sharding.checkpoints import VARIANTS, save_checkpoint
from tests.engine.sharding.crew import Crew, load_rank, no_sum
from tests.engine.tiny import Answer, TinyModel, random_prompt

PREFIXES = [("llama", "model."), ("gpt2 tied", "transformer."), ("opt tied", "model.")]


FOUR = ParallelLayout(tp=2, pp=2)


def parameters(shard: LoadedShard) -> dict[str, torch.Tensor]:
    """By name, wrappers and all."""
    return dict(shard.module.named_parameters())


@pytest.mark.parametrize(("name", "prefix"), PREFIXES)
def test_names_without_the_prefix(name: str, prefix: str, tmp_path: Path) -> None:
    save_checkpoint(VARIANTS[name], tmp_path)
    before = parameters(load_rank(tmp_path, FOUR, 1))
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {key.removeprefix(prefix): value for key, value in tensors.items()}
    save_file(bare, tmp_path / "model.safetensors", {"format": "pt"})
    after = parameters(load_rank(tmp_path, FOUR, 1))
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in after.values())


@pytest.mark.parametrize("written", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_converted_as_the_whole_model_is(written: torch.dtype, dtype: str, tmp_path: Path) -> None:
    save_checkpoint(VARIANTS["qwen3_moe one dense"], tmp_path, written)
    whole = load_model(tmp_path, dtype=dtype).module.state_dict()
    place = RankPlace(layout=ParallelLayout(tp=2), rank=1)
    part = load_shard(tmp_path, dtype=dtype, device="cpu", place=place, all_reduce=no_sum)
    held = part.module.model.state_dict()
    name = "model.layers.1.mlp.experts{}.down_proj"
    rows = split(32, 2, 1)
    assert torch.equal(held[name.format(".inner")], whole[name.format("")][..., rows.start :])
    assert torch.equal(held["lm_head.weight"], whole["lm_head.weight"][150:])
    assert torch.equal(held["model.norm.weight"], whole["model.norm.weight"])


def test_several_files(tmp_path: Path) -> None:
    model = save_checkpoint(VARIANTS["llama"], tmp_path / "one")
    model.oracle.save_pretrained(tmp_path / "many", max_shard_size="50KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    one, many = (parameters(load_rank(tmp_path / name, FOUR, 2)) for name in ("one", "many"))
    assert all(torch.equal(one[key], many[key]) for key in one)


def test_the_spec_is_the_whole_models(tiny: TinyModel) -> None:
    shard = load_rank(tiny.directory, FOUR, 3)
    # The digest is the leader's to tell.
    assert shard.spec == replace(tiny.loaded.spec, weights_digest="")
    assert (shard.shard.layers, shard.shard.query_heads) == (range(1, 2), range(2, 4))
    assert isinstance(shard.module, StageModule)


def test_a_single_rank_is_the_whole_model(tiny: TinyModel) -> None:
    crew = Crew(tiny.directory, 1, 1)
    answer = Answer(random_prompt(20, seed=1), (0, 1, 2))
    while len(answer.output) < 5:
        entry = answer.next_entry()
        answer.absorb(entry, int(crew.logits(entry)[0].argmax()))
    assert list(answer.output) == tiny.generate(answer.prompt, 5)


def test_sums_per_step(tiny: TinyModel) -> None:
    """One for the embedding, on the first stage alone; then two per layer."""
    crew = Crew(tiny.directory, 2, 2)
    crew.logits(Answer(random_prompt(20, seed=1), (0, 1)).next_entry())
    assert [meeting.num_sums for meeting in crew.meetings] == [3, 2]
