"""What a step's attention asks of the kernels it is given, and what it then leaves undone."""

from dataclasses import dataclass, field

import pytest
import torch

from core.model_spec import ModelSpec
from engine.attention import GatherBuffers, Kernels, StepAttention
from engine.kernels import kernels_for, runs_triton
from engine.kv_cache import KvCache
from engine.step_plan import PagedTable, SlotIndex, StepPlan, plan_step
from tests.engine.tiny import Answer, TinyModel, random_prompt

BLOCK_SIZE = 4
GATHERED = {"index", "lengths"}
"""Worked out at first use."""


@dataclass
class Writer:
    """A KvWriter that only notes what it is given."""

    given: list[SlotIndex] = field(default_factory=list)

    def __call__(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        kv: tuple[torch.Tensor, torch.Tensor],
        index: SlotIndex,
    ) -> None:
        assert key.shape == value.shape
        assert kv[0].shape[1:] == (key.shape[0], key.shape[2])
        self.given.append(index)


@dataclass
class Attends:
    """A PagedKernel that notes its calls."""

    num_calls: int = 0

    def __call__(
        self,
        query: torch.Tensor,
        kv: tuple[torch.Tensor, torch.Tensor],
        table: PagedTable,
        scale: float,
        window: int | None,
        out: torch.Tensor,
    ) -> None:
        self.num_calls += 1


@pytest.fixture
def cache(tiny: TinyModel) -> KvCache:
    return KvCache(tiny.loaded.spec, num_blocks=16, block_size=BLOCK_SIZE)


def plan() -> StepPlan:
    """A chunk after cached tokens, and two answers."""
    requests = [
        Answer(random_prompt(13, seed=1), (3, 1, 5, 7), start=6),
        Answer(random_prompt(9, seed=2), (2, 4, 6), start=8),
        Answer(random_prompt(6, seed=3), (8, 0), start=5),
    ]
    return plan_step([answer.next_entry() for answer in requests], BLOCK_SIZE, "cpu")


def qkv(spec: ModelSpec, num_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    heads = (spec.num_query_heads, spec.num_kv_heads, spec.num_kv_heads)
    q, k, v = (torch.randn(num_heads, num_rows, spec.head_dim) for num_heads in heads)
    return q, k, v


def attend(cache: KvCache, step: StepPlan, kernels: Kernels, spec: ModelSpec) -> None:
    attention = StepAttention(cache, step, GatherBuffers(), lambda _layer: None, kernels)
    for layer in range(2):
        attention.attend(layer, qkv(spec, step.input_ids.shape[1]), None, None)


def worked_out(step: StepPlan) -> set[str]:
    return {name for part in (*step.prefills, *step.decodes) for name in vars(part)} & GATHERED


def test_the_writer_writes(tiny: TinyModel, cache: KvCache) -> None:
    writer, step = Writer(), plan()
    attend(cache, step, Kernels(Attends(), Attends(), writer), tiny.loaded.spec)
    assert [index is step.write_index for index in writer.given] == [True, True]
    assert not cache.data.any(), "nobody else did"


def test_without_a_writer_every_row_reaches_its_slot(tiny: TinyModel, cache: KvCache) -> None:
    spec, step = tiny.loaded.spec, plan()
    given = qkv(spec, step.input_ids.shape[1])
    attention = StepAttention(
        cache, step, GatherBuffers(), lambda _layer: None, Kernels(Attends(), Attends())
    )
    attention.attend(1, given, None, None)
    assert isinstance(step.write_index, torch.Tensor)
    for stored, rows in zip(cache.layer(1), given[1:], strict=True):
        assert torch.equal(stored[step.write_index], rows.transpose(0, 1))
        others = torch.ones(len(stored), dtype=torch.bool)
        others[step.write_index] = False
        assert not stored[others].any()


KERNELS = [
    # id              prefill decode  what is gathered
    ("both", True, True, set()),
    ("decode only", False, True, {"index"}),
    ("prefill only", True, False, {"index", "lengths"}),
    ("none", False, False, {"index", "lengths"}),
]


@pytest.mark.parametrize(
    ("prefill", "decode", "want"), [k[1:] for k in KERNELS], ids=[k[0] for k in KERNELS]
)
def test_nothing_is_gathered_for_kernels(
    prefill: bool, decode: bool, want: set[str], tiny: TinyModel, cache: KvCache
) -> None:
    step = plan()
    kernels = Kernels(Attends() if prefill else None, Attends() if decode else None)
    attend(cache, step, kernels, tiny.loaded.spec)
    assert worked_out(step) == want


def test_a_cpu_needs_no_triton() -> None:
    assert not runs_triton("cpu")
    assert kernels_for("cpu", "float32").write is None
