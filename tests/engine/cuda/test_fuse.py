"""Joined layers give what they gave alone, whoever asks, in whatever order."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from engine.cuda.fuse import JoinedLinears, PartOfLinears, fuse_siblings
from tests.engine.tiny import TinyModel, random_prompt


@pytest.fixture
def linears() -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(8, size).requires_grad_(False) for size in (6, 4, 2)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (0, 0, 1), (1, 2, 2, 0)])
def test_parts_equal_the_layers(linears: list[nn.Linear], order: tuple[int, ...]) -> None:
    joined = JoinedLinears(linears)
    for x in (torch.randn(1, 5, 8), torch.randn(1, 1, 8)):
        for number in order:
            torch.testing.assert_close(joined.part(number, x), linears[number](x))


def test_another_input_in_between(linears: list[nn.Linear]) -> None:
    joined = JoinedLinears(linears)
    a, b = torch.randn(3, 8), torch.randn(3, 8)
    for number, x in ((0, a), (1, b), (1, a), (0, b)):
        torch.testing.assert_close(joined.part(number, x), linears[number](x))


def test_nothing_is_held_once_all_have_asked(linears: list[nn.Linear]) -> None:
    joined = JoinedLinears(linears)
    x = torch.randn(3, 8)
    for number in range(3):
        joined.part(number, x)
    assert joined._input is None
    assert not joined._outputs


def test_a_model_computes_the_same(tiny: TinyModel) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny.directory)
    num_bytes = sum(p.nbytes for p in model.parameters())
    ids = torch.tensor([random_prompt(20, seed=1)])
    with torch.inference_mode():
        want = model(input_ids=ids).logits
        fuse_siblings(model)
        got = model(input_ids=ids).logits
    torch.testing.assert_close(got, want)
    assert sum(isinstance(part, PartOfLinears) for part in model.modules()) == 5 * 2
    assert sum(p.nbytes for p in model.parameters()) == num_bytes


def test_layers_that_differ_stay() -> None:
    module = nn.Module()
    module.gate_proj, module.up_proj = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
    fuse_siblings(module)
    assert type(module.gate_proj) is nn.Linear
