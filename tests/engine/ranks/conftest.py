"""A tiny model whose layers and heads divide unevenly, and ranks that many tests share."""

from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaForCausalLM

from core.parallel import ParallelLayout
from tests.engine.ranks.ranked import Ranked, start
from tests.engine.tiny import TinyModel, tiny_config

LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)]
"""tp 4 has fewer KV heads than ranks; pp 2 has three layers to share."""


@pytest.fixture(scope="session")
def three_layers(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A random Llama."""
    directory = tmp_path_factory.mktemp("three-layers")
    torch.manual_seed(1)
    config = tiny_config()
    config.num_hidden_layers = 3
    LlamaForCausalLM(config).save_pretrained(directory)
    return TinyModel(directory)


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: "x".join(map(str, layout)))
def ranked(request: pytest.FixtureRequest, three_layers: TinyModel) -> Iterator[Ranked]:
    """All ranks of an instance; KV that no test wrote is NaN."""
    tp, pp = request.param
    ranked = start(three_layers, ParallelLayout(tp=tp, pp=pp))
    yield ranked
    ranked.forward.close()
    assert not ranked.lost, "the ranks outlived their tests"
    assert ranked.survivors() == []
