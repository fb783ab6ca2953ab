"""A router over scripted instances, all in this process, everything over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from core.config import RouterConfig
from core.ids import RouterId
from registry.memory import MemoryRegistry
from router.client import AsyncClient
from router.server import run_router
from router.spec import RouterSpec
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import cluster_pb2, cluster_pb2_grpc
from tests.router.fake_model import write_tokenizer
from tests.router.fakes import FakeInstance, instances
from tests.router.script import BOUND_S


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("model"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningRouter:
    address: str
    http_address: str
    stop: asyncio.Event
    task: "asyncio.Task[None]"


@dataclass(slots=True, eq=False)
class Stage:
    """What a test of a router has at hand."""

    peers: dict[str, FakeInstance]
    registry: MemoryRegistry
    routers: list[RunningRouter]
    client: AsyncClient

    def __getitem__(self, name: str) -> FakeInstance:
        return self.peers[name]

    async def join(self, peer: FakeInstance) -> None:
        await self.registry.announce(peer.member(), ttl_s=60.0)


OpenStage = Callable[..., Awaitable[Stage]]


@pytest.fixture
async def stage(model_dir: Path) -> AsyncIterator[OpenStage]:
    """Call it with the roles of the instances and, perhaps, another RouterConfig or model."""
    async with AsyncExitStack() as stack:

        async def open_stage(
            roles: str = "pd",
            *,
            config: RouterConfig | None = None,
            num_routers: int = 1,
            model: Path = model_dir,
        ) -> Stage:
            peers = await stack.enter_async_context(instances(roles))
            registry = MemoryRegistry()
            for peer in peers.values():
                await registry.announce(peer.member(), ttl_s=60.0)
            routers = [
                await stack.enter_async_context(_router(i, model, registry, config))
                for i in range(num_routers)
            ]
            for router in routers:
                await _until_connected(router.address, len(peers))
            addresses = [router.address for router in routers]
            client = await stack.enter_async_context(AsyncClient(addresses))
            return Stage(peers, registry, routers, client)

        yield open_stage


async def _until_connected(address: str, num_instances: int) -> None:
    """Another role would serve until the right one has answered the router's subscription."""
    async with dial(address, plane=Plane.CLIENT) as channel, asyncio.timeout(BOUND_S):
        stub = cluster_pb2_grpc.ClusterStub(channel)
        num_connected = -1
        while num_connected < num_instances:
            reply = await stub.Status(cluster_pb2.StatusRequest(), timeout=BOUND_S)
            num_connected = sum(instance.connected for instance in reply.instances)


async def _http_address(address: str) -> str:
    async with dial(address, plane=Plane.CLIENT) as channel:
        stub = cluster_pb2_grpc.ClusterStub(channel)
        reply = await stub.Status(cluster_pb2.StatusRequest(), timeout=BOUND_S)
        return str(reply.http_address)


@asynccontextmanager
async def _router(
    index: int, model_dir: Path, registry: MemoryRegistry, config: RouterConfig | None
) -> AsyncIterator[RunningRouter]:
    spec = RouterSpec(
        router_id=RouterId(f"router-{index}"),
        model_dir=model_dir,
        registry_url="",
        cluster="test",
        config=config or RouterConfig(),
        drain_s=1.0,
    )
    stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(
        run_router(spec, stop=stop, ready=address.set_result, registry=registry)
    )
    try:
        async with asyncio.timeout(BOUND_S):
            await asyncio.wait({task, address}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        http_address = await _http_address(await address)
        yield RunningRouter(address=await address, http_address=http_address, stop=stop, task=task)
    finally:
        stop.set()
        async with asyncio.timeout(BOUND_S):
            await asyncio.wait({task})
        if not task.cancelled():
            task.result()
