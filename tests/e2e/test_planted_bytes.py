"""If the handed-over bytes are wrong, so are the tokens: nothing else feeds decode."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from core.config import Config
from core.ids import InstanceId, RouterId
from core.member import Role
from deploy.assembly import Compute
from deploy.cluster import await_connected
from deploy.instance import InstanceSpec, load_compute, run_instance
from kv_transfer.stores import KvStore
from registry.embedded import EmbeddedValkey
from router.server import RouterSpec, run_router
from tests.e2e.asking import Question, ask_all
from tests.e2e.oracle import Oracle

START_TIMEOUT_S = 60.0
QUESTION = Question(prompt=tuple(3 + (i * 11) % 500 for i in range(100)), max_tokens=24)

Load = Callable[[InstanceSpec], Compute]


@dataclass(frozen=True, slots=True)
class PlantedStore:
    """Gathers wrong bytes before anybody has taken their checksum or digest."""

    store: KvStore

    def gather(self, layers: range, block_ids: object, tokens: range) -> memoryview:
        payload = bytearray(self.store.gather(layers, block_ids, tokens))  # type: ignore[arg-type]
        payload[: len(payload) // 2] = bytes(len(payload) // 2)
        return memoryview(payload)

    def gather_into(self, layers: range, block_ids: object, tokens: range, out: memoryview) -> None:
        out[:] = self.gather(layers, block_ids, tokens)

    def scatter(self, layers: range, block_ids: object, tokens: range, payload: memoryview) -> None:
        self.store.scatter(layers, block_ids, tokens, payload)  # type: ignore[arg-type]


def _planted(spec: InstanceSpec) -> Compute:
    compute = load_compute(spec)
    return replace(compute, store=PlantedStore(compute.store))


def test_right_bytes_right_tokens(tiny_dir: Path, tiny_oracle: Oracle) -> None:
    token_ids = asyncio.run(_answer(tiny_dir, load_compute))
    assert tiny_oracle.compare(QUESTION.prompt, token_ids).problem is None


def test_wrong_bytes_wrong_tokens(tiny_dir: Path, tiny_oracle: Oracle) -> None:
    token_ids = asyncio.run(_answer(tiny_dir, _planted))
    wanted = tiny_oracle.answer(QUESTION.prompt, QUESTION.max_tokens)
    assert token_ids[0] == wanted[0], "the first token is prefill's own"
    assert list(token_ids) != wanted


async def _answer(model_dir: Path, load: Load) -> tuple[int, ...]:
    async with _pair(model_dir, load) as address:
        [answer] = await ask_all([address], [QUESTION])
        return answer.token_ids


@asynccontextmanager
async def _pair(model_dir: Path, load: Load) -> AsyncIterator[str]:
    """Two instances and a router in this process; yields the router's address."""
    stop = asyncio.Event()
    async with EmbeddedValkey() as server, asyncio.TaskGroup() as group:
        for role in (Role.PREFILL, Role.DECODE):
            spec = InstanceSpec(
                instance_id=InstanceId(f"{role}-0"),
                role=role,
                model_dir=model_dir,
                config=Config(),
                registry_url=server.url,
                drain_s=0.0,
            )
            await _started(
                group, lambda ready, s=spec: run_instance(s, stop=stop, ready=ready, load=load)
            )
        router = RouterSpec(
            router_id=RouterId("router-0"),
            model_dir=model_dir,
            registry_url=server.url,
            cluster="baton",
            drain_s=0.0,
        )
        address = await _started(group, lambda ready: run_router(router, stop=stop, ready=ready))
        try:
            await await_connected(address, 2)
            yield address
        finally:
            stop.set()


async def _started(group: asyncio.TaskGroup, main: Callable[..., object]) -> str:
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    group.create_task(main(address.set_result))  # type: ignore[arg-type]
    async with asyncio.timeout(START_TIMEOUT_S):
        return await address
