"""A whole cluster of plain processes over stub engines: registry, instances, routers."""

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import CLUSTER, DRAIN_S, Service, service
from bench.stub_engine import StepCost, write_stub_model
from bench.stub_instance import StubSpec
from core.config import Config, RouterConfig
from core.ids import InstanceId, RouterId
from core.member import Role
from deploy.cluster import await_connected
from deploy.instance import InstanceSpec
from registry.embedded import EmbeddedValkey
from router.spec import RouterSpec, Speed
from rpc.process import keep_what_is_loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class StubInstance:
    """One to start."""

    role: Role
    cost: StepCost = field(default_factory=StepCost)


@dataclass(frozen=True, slots=True, kw_only=True)
class StubCluster:
    """Running."""

    registry_url: str
    instances: Sequence[Service]
    """In the order asked for."""
    routers: Sequence[Service]
    http_addresses: Sequence[str]
    """Of the routers: OpenAI's API."""

    @property
    def addresses(self) -> list[str]:
        """Of the routers."""
        return [router.address for router in self.routers]


@asynccontextmanager
async def stub_cluster(
    instances: Sequence[StubInstance],
    *,
    config: Config | None = None,
    routers: Sequence[RouterConfig] = (RouterConfig(),),
    speed: Speed | None = None,
) -> AsyncIterator[StubCluster]:
    """Start all; end all when the block ends, however it ends."""
    async with AsyncExitStack() as stack:
        folder = write_stub_model(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        url = (await stack.enter_async_context(EmbeddedValkey())).url
        specs = [
            StubSpec(instance=_instance(i, stub.role, folder, config, url), cost=stub.cost)
            for i, stub in enumerate(instances)
        ]
        running = [
            stack.enter_context(service("bench.stub_instance", spec.to_json())) for spec in specs
        ]
        router_specs = [
            RouterSpec(
                router_id=RouterId(f"router-{i}"),
                model_dir=folder,
                registry_url=url,
                cluster=CLUSTER,
                config=each,
                speed=speed or Speed(),
                drain_s=DRAIN_S,
            )
            for i, each in enumerate(routers)
        ]
        front = [
            stack.enter_context(service("router.server", spec.to_json())) for spec in router_specs
        ]
        replies = [await await_connected(router.address, len(running)) for router in front]
        # This process offers the load: a pause of its own would be measured as the cluster's.
        keep_what_is_loaded()
        yield StubCluster(
            registry_url=url,
            instances=running,
            routers=front,
            http_addresses=[reply.http_address for reply in replies],
        )


def _instance(
    index: int, role: Role, folder: Path, config: Config | None, url: str
) -> InstanceSpec:
    return InstanceSpec(
        instance_id=InstanceId(f"{role}-{index}"),
        role=role,
        model_dir=folder,
        config=config or Config(),
        registry_url=url,
        cluster=CLUSTER,
        drain_s=DRAIN_S,
    )
