"""The tiny models, saved and loaded once per session."""

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.engine.architectures import Architectures
from tests.engine.tiny import TinyModel, tiny_config


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A two-layer random Llama."""
    directory = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(1)
    LlamaForCausalLM(tiny_config()).save_pretrained(directory)
    return TinyModel(directory)


@pytest.fixture(scope="session")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> Architectures:
    """One of each kind."""
    return Architectures(tmp_path_factory.mktemp("architectures"))
