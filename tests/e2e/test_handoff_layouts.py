"""Law 1 for every pair of layouts by every carrier: KV moves, and no token changes.

Whole instances in this process, over real gRPC; their ranks are processes of their own.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path

import pytest
import torch

from core.config import Config, EngineConfig, HandoffConfig, WorkerConfig
from core.ids import InstanceId
from core.kv_layout import CARRIERS, KvLayout
from core.member import Role
from core.parallel import ParallelLayout
from core.work import WorkRequest
from deploy.assembly import Compute
from deploy.instance import InstanceSpec, load_compute
from tests.deploy.instances import (
    Heard,
    Running,
    decode_request,
    events,
    instance,
    prefill_request,
    subscribed,
    work,
)
from tests.e2e.oracle import Oracle

SIZES = (1, 2)
LAYOUTS = [ParallelLayout(tp=tp, pp=pp) for tp, pp in product(SIZES, SIZES)]
NUM_BLOCKS = 64
NUM_STEP_TOKENS = 32
MAX_TOKENS = 10
PROMPTS = [
    tuple(3 + (first + i * 11) % 500 for i in range(num_tokens))
    for first, num_tokens in ((1, 1), (2, 16), (3, 33), (4, 150))
]
"""One token; a whole block; one more than a whole block of either size; several chunks."""


@dataclass(frozen=True, slots=True)
class Row:
    """One case."""

    prefill_tp: int
    prefill_pp: int
    decode_tp: int
    decode_pp: int
    carrier: str

    @property
    def prefill(self) -> ParallelLayout:
        return ParallelLayout(tp=self.prefill_tp, pp=self.prefill_pp)

    @property
    def decode(self) -> ParallelLayout:
        return ParallelLayout(tp=self.decode_tp, pp=self.decode_pp)

    @property
    def values(self) -> tuple[int | str, ...]:
        """Of all factors."""
        return (self.prefill_tp, self.prefill_pp, self.decode_tp, self.decode_pp, self.carrier)

    def __str__(self) -> str:
        return f"{self.prefill} to {self.decode} by {self.carrier}"


MATRIX = [Row(*values) for values in product(SIZES, SIZES, SIZES, SIZES, CARRIERS)]
PAIRWISE = [
    Row(1, 1, 1, 2, "grpc"),
    Row(2, 2, 2, 1, "grpc"),
    Row(1, 1, 2, 1, "shm"),
    Row(2, 2, 1, 2, "shm"),
    Row(1, 2, 1, 1, "torchdist"),
    Row(2, 1, 2, 2, "torchdist"),
]


def block_size_of(role: Role, layout: ParallelLayout) -> int:
    """So that blocks of a pair are alike, or larger here, or larger there."""
    is_large = layout.pp == 2 and (role is Role.DECODE or layout.tp == 2)
    return 32 if is_large else 16


@dataclass(slots=True)
class Loaded:
    """Models and their ranks, loaded when first asked for and kept: loading costs most."""

    model_dir: Path
    stack: ExitStack
    computes: dict[tuple[Role, ParallelLayout], Compute] = field(default_factory=dict)

    def compute(self, role: Role, layout: ParallelLayout) -> Compute:
        """One with NaN everywhere: nothing hides KV that did not come."""
        if (role, layout) not in self.computes:
            compute = load_compute(self._spec(role, layout))
            self.stack.callback(compute.close)
            self.computes[role, layout] = compute
        compute = self.computes[role, layout]
        poison(compute, block_size_of(role, layout))
        return compute

    @property
    def bytes_per_token(self) -> int:
        """Of KV, in all layers."""
        compute = next(iter(self.computes.values()))
        return KvLayout.of(compute.model, 1).bytes_per_token

    def _spec(self, role: Role, layout: ParallelLayout) -> InstanceSpec:
        return InstanceSpec(
            instance_id=InstanceId("instance"),
            role=role,
            model_dir=self.model_dir,
            config=config_of(role, layout),
            layout=layout,
        )


def config_of(role: Role, layout: ParallelLayout, carrier: str = "auto") -> Config:
    """Steps and segments so small that a prompt takes several of both."""
    return Config(
        engine=EngineConfig(
            num_blocks=NUM_BLOCKS, block_size=block_size_of(role, layout), num_threads=1
        ),
        worker=WorkerConfig(prefill_step_tokens=NUM_STEP_TOKENS, mixed_step_tokens=16),
        handoff=HandoffConfig(carrier=carrier, max_segment_bytes=8192),
    )


def poison(compute: Compute, block_size: int) -> None:
    layout = KvLayout.of(compute.model, block_size)
    tokens = range(NUM_BLOCKS * block_size)
    nan = b"\xff" * (layout.bytes_per_token * len(tokens))
    layers = range(compute.model.num_layers)
    compute.store.scatter(layers, range(NUM_BLOCKS), tokens, memoryview(nan))


@pytest.fixture(scope="module")
def loaded(tiny_dir: Path) -> Iterator[Loaded]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, num_threads)
        yield Loaded(tiny_dir, stack)


@asynccontextmanager
async def pair_of(loaded: Loaded, row: Row) -> AsyncIterator[tuple[Running, Running]]:
    """A prefill and a decode instance."""
    prefill_config, decode_config = (
        config_of(role, layout, row.carrier)
        for role, layout in ((Role.PREFILL, row.prefill), (Role.DECODE, row.decode))
    )
    source = loaded.compute(Role.PREFILL, row.prefill)
    sink = loaded.compute(Role.DECODE, row.decode)
    async with (
        instance(Role.PREFILL, prefill_config, source) as prefill,
        instance(Role.DECODE, decode_config, sink) as decode,
    ):
        yield prefill, decode


def requests_of(row: Row, loaded: Loaded) -> list[WorkRequest]:
    fingerprint = loaded.computes[Role.PREFILL, row.prefill].fingerprint
    return [
        work(
            prompt,
            handoff_id=f"request-{index}/0",
            max_tokens=MAX_TOKENS,
            fingerprint=fingerprint,
        )
        for index, prompt in enumerate(PROMPTS)
    ]


async def answers(row: Row, loaded: Loaded) -> list[Heard]:
    """To all prompts at once; both instances have given everything back."""
    async with pair_of(loaded, row) as (prefill, decode), subscribed(decode) as router:
        requests = requests_of(row, loaded)
        async with asyncio.TaskGroup() as group:
            for request in requests:
                await decode.decode.Decode(decode_request(request, prefill))
                group.create_task(events(prefill.prefill.Prefill(prefill_request(request))))
        heard = [router.heard(request.handoff_id) for request in requests]
        await router.until(lambda: all(each.is_over for each in heard))
        for side in (prefill, decode):
            await side.all_returned()
            integrity = side.integrity
            assert not any((integrity.num_leases, integrity.num_incoming, integrity.num_fetches))
        return heard


async def check_row(row: Row, loaded: Loaded, oracle: Oracle) -> None:
    for prompt, heard in zip(PROMPTS, await answers(row, loaded), strict=True):
        assert not heard.error
        assert heard.kv_lost == 0
        assert oracle.compare(prompt, heard.token_ids).problem is None
        assert len(heard.token_ids) == MAX_TOKENS
        (timing,) = (output.timing for output in heard.outputs if output.HasField("timing"))
        assert timing.carrier == row.carrier
        assert timing.num_kv_bytes == len(prompt) * loaded.bytes_per_token


@pytest.mark.parametrize("row", PAIRWISE, ids=str)
async def test_tokens_are_those_of_generate(row: Row, loaded: Loaded, tiny_oracle: Oracle) -> None:
    await check_row(row, loaded, tiny_oracle)


@pytest.mark.matrix
@pytest.mark.parametrize("row", MATRIX, ids=str)
async def test_tokens_are_those_of_generate_everywhere(
    row: Row, loaded: Loaded, tiny_oracle: Oracle
) -> None:
    await check_row(row, loaded, tiny_oracle)


def pairs_of(rows: list[Row]) -> set[tuple[object, ...]]:
    """(factor, factor, value, value) that some row has."""
    return {
        (a, b, row.values[a], row.values[b])
        for row in rows
        for a, b in combinations(range(len(row.values)), 2)
    }


def test_the_rows_are_pairwise() -> None:
    assert pairs_of(PAIRWISE) == pairs_of(MATRIX)


@pytest.mark.parametrize("sizes", [(16, 16), (16, 32), (32, 16), (32, 32)], ids=str)
def test_the_rows_have_blocks_of(sizes: tuple[int, int]) -> None:
    assert sizes in {
        (block_size_of(Role.PREFILL, row.prefill), block_size_of(Role.DECODE, row.decode))
        for row in PAIRWISE
    }
