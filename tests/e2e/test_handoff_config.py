"""What the config says of handoffs, in whole instances: their carrier and their wire format."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench import processes
from core.config import Config, EngineConfig, HandoffConfig
from core.ids import InstanceId
from core.kv_layout import STORED
from core.member import Role
from deploy.instance import InstanceSpec, load_compute
from rpc.pb import types_pb2
from tests.deploy.instances import (
    Running,
    decode_request,
    events,
    instance,
    prefill_request,
    subscribed,
    work,
)
from tests.e2e.asking import Answer, Question, ask
from tests.e2e.oracle import Oracle, compare_all

PROMPT = tuple(3 + i * 7 % 500 for i in range(70))
NUM_FULL_BLOCKS = 4
ENGINE = EngineConfig(num_blocks=32, block_size=16)
OWN_GROUPS = HandoffConfig(carrier="torchdist")


@dataclass(frozen=True, slots=True)
class Pair:
    """A prefill and a decode instance with a real model."""

    prefill: Running
    decode: Running
    fingerprint: str


async def answered(pair: Pair, name: str) -> types_pb2.HandoffTiming:
    """What the handoff of one answer to PROMPT took."""
    prefill, decode = pair.prefill, pair.decode
    request = work(PROMPT, handoff_id=f"{name}/0", fingerprint=pair.fingerprint)
    async with subscribed(decode) as router, asyncio.TaskGroup() as group:
        await decode.decode.Decode(decode_request(request, prefill))
        group.create_task(events(prefill.prefill.Prefill(prefill_request(request))))
        heard = router.heard(request.handoff_id)
        await router.until(lambda: heard.is_over)
    assert not heard.error
    await prefill.all_returned()
    await decode.all_returned()
    (timing,) = (output.timing for output in heard.outputs if output.HasField("timing"))
    return timing


@asynccontextmanager
async def pair_by(model_dir: Path, wire_format: str) -> AsyncIterator[Pair]:
    """Both write KV on the wire in this way."""
    config = Config(engine=ENGINE, handoff=HandoffConfig(wire_format=wire_format))
    computes = [
        load_compute(
            InstanceSpec(
                instance_id=InstanceId("instance"), role=role, model_dir=model_dir, config=config
            )
        )
        for role in (Role.PREFILL, Role.DECODE)
    ]
    async with (
        instance(Role.PREFILL, config, computes[0]) as prefill,
        instance(Role.DECODE, config, computes[1]) as decode,
    ):
        yield Pair(prefill, decode, computes[0].fingerprint)


@pytest.mark.parametrize(
    ("wire_format", "num_blocks"), [(STORED, NUM_FULL_BLOCKS), ("int8", 0)], ids=[STORED, "int8"]
)
async def test_only_exact_kv_is_cached_and_lent(
    tiny_dir: Path, wire_format: str, num_blocks: int
) -> None:
    """Rounded KV under an exact name would make other answers, here and elsewhere, inexact."""
    async with pair_by(tiny_dir, wire_format) as pair:
        assert (await answered(pair, "first")).num_reused_tokens == 0
        assert (await pair.decode.status()).load.num_cached_blocks == num_blocks
        timing = await answered(pair, "second")
        assert timing.num_reused_tokens == num_blocks * ENGINE.block_size
        assert (await pair.prefill.status()).load.num_cached_blocks == NUM_FULL_BLOCKS


def carrier_of(answer: Answer) -> str:
    timing = answer.finished.timing.handoff
    return "" if timing is None else timing.carrier


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[processes.Service]:
    """Every process that bench.processes started."""
    known, start = list[processes.Service](), processes.service

    @contextmanager
    def service(module: str, spec_json: str) -> Iterator[processes.Service]:
        with start(module, spec_json) as found:
            known.append(found)
            yield found

    monkeypatch.setattr(processes, "service", service)
    return known


async def test_processes_with_pair_groups_answer_and_end(
    tiny_dir: Path, tiny_oracle: Oracle, started: list[processes.Service]
) -> None:
    """Several streams at once leave groups that are idle; none holds up the end of its process."""
    config = Config(engine=ENGINE, handoff=OWN_GROUPS)
    asked = [Question(prompt=PROMPT[: 20 * n], max_tokens=12) for n in (1, 2, 3)]
    answers: list[Answer] = []
    roles = (Role.PREFILL, Role.DECODE)
    async with processes.running(tiny_dir, roles, config) as running:
        for _ in range(2):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask(running.client, question)) for question in asked]
            answers += [task.result() for task in tasks]
    compare_all(tiny_oracle, answers)
    assert {carrier_of(answer) for answer in answers} == {"torchdist"}
    assert [service.process.returncode for service in started] == [0, 0, 0]
