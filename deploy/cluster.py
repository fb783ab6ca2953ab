"""A cluster from a plan: registry, Ray actors for instances and routers, and their end."""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio

from core.config import Config
from core.errors import BatonError, ModelError, PeerLost
from core.ids import InstanceId, RouterId
from core.member import Role
from core.plan import Plan, PoolPlan
from deploy.actors import READY_TIMEOUT_S, ServiceActor, StartFailed
from deploy.check_model import check_model
from deploy.instance import InstanceSpec
from deploy.memory import available_memory_bytes, check_memory, cluster_bytes
from deploy.ray_runtime import private_ray
from registry.embedded import EmbeddedValkey
from router.spec import RouterSpec, Speed
from rpc.dial import dial
from rpc.pb import cluster_pb2, cluster_pb2_grpc
from rpc.serve import BindFailed

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 10.0
"""Past the drain: closing servers and channels; then Ray kills what is left."""
CONNECT_TIMEOUT_S = 30.0
"""A router reads the registry every 2 s and connects within milliseconds."""
CONNECT_PROBE_S = 0.05
FREE_CALLS = 4
"""Threads of an actor for `address`, `pid` and `stop`, which may wait for one another."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """Everything `start_cluster` needs."""

    plan: Plan
    model_dir: Path
    config: Config = field(default_factory=Config)
    speed: Speed = field(default_factory=Speed)
    """What routers predict by, until they have seen for themselves."""
    name: str = "baton"
    registry_url: str | None = None
    """None starts the embedded Valkey."""
    router_port: int = 0
    """Of the first router; 0 takes any free one."""
    http_port: int = 0
    """The same, of OpenAI's API."""
    drain_s: float = 5.0
    log_level: str = "WARNING"
    log_format: str = "text"
    """One of core.logs.LogFormat."""


@dataclass(slots=True, kw_only=True)
class Cluster:
    """A running cluster. Ray owns the processes; this only names them."""

    ray: Any
    registry_url: str
    actors: dict[str, Any] = field(default_factory=dict)
    """Instance or router id → actor handle."""
    addresses: dict[str, str] = field(default_factory=dict)
    """Instance or router id → host:port, as first started."""
    http_addresses: tuple[str, ...] = ()
    """host:port of OpenAI's API at every router."""

    @property
    def router_addresses(self) -> tuple[str, ...]:
        """host:port of every router."""
        return tuple(a for name, a in self.addresses.items() if name.startswith("router"))

    async def pid(self, name: str) -> int:
        """Process id of one actor; after a crash, of the restarted one."""
        return int(str(await self._ask(self.actors[name].pid.remote())))

    async def address(self, name: str) -> str:
        """host:port of one actor, once it serves."""
        return str(await self._ask(self.actors[name].address.remote()))

    async def _ask(self, reference: "ObjectRef[Any]") -> object:
        # A future, not ray.get in a thread: a thread could not be cancelled.
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                return await asyncio.wrap_future(reference.future())
        except self.ray.exceptions.RayTaskError as error:
            raise StartFailed(str(error.cause)) from None
        except (TimeoutError, self.ray.exceptions.RayError) as error:
            raise PeerLost(f"no answer from an actor: {type(error).__name__}: {error}") from error

    async def start(self, specs: "list[ActorSpec]", on_progress: Progress) -> None:
        """Start all actors at once, and wait until each serves."""
        for spec in specs:
            self.actors[spec.name] = self._actor(spec)
        try:
            async with asyncio.TaskGroup() as group:
                for name in self.actors:
                    group.create_task(self._await_ready(name, on_progress))
        except* BatonError as errors:
            # One reason is enough: whoever reads it looks at the next one later.
            raise errors.exceptions[0] from None
        num_instances = len(self.actors) - len(self.router_addresses)
        for address in self.router_addresses:
            reply = await await_connected(address, num_instances)
            self.http_addresses += (reply.http_address,)

    async def _await_ready(self, name: str, on_progress: Progress) -> None:
        self.addresses[name] = await self.address(name)
        on_progress(f"{name} serves on {self.addresses[name]}")

    def _actor(self, spec: "ActorSpec") -> "ActorHandle[Any]":
        options: dict[str, Any] = {
            "num_cpus": spec.num_cpus,
            "num_gpus": spec.num_gpus,
            "max_restarts": -1,
            # Calls that meet a restart wait for it.
            "max_task_retries": -1,
            "max_concurrency": FREE_CALLS,
        }
        if spec.num_cpus or spec.num_gpus:
            options["scheduling_strategy"] = self._placement(spec)
        actor = self.ray.remote(ServiceActor).options(**options)
        handle: ActorHandle[Any] = actor.remote(
            spec.name, spec.kind, spec.spec_json, spec.log_level, spec.log_format
        )
        return handle

    def _placement(self, spec: "ActorSpec") -> "PlacementGroupSchedulingStrategy":
        """The instance's placement group: its ranks packed on one host."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundle = {"CPU": spec.num_cpus, "GPU": spec.num_gpus}
        group = placement_group(
            [{kind: amount for kind, amount in bundle.items() if amount}],
            strategy="STRICT_PACK",
            name=spec.name,
        )
        return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)

    async def stop(self, drain_s: float) -> None:
        """Routers first, so that nothing new reaches instances that drain."""
        routers = {n: a for n, a in self.actors.items() if n.startswith("router")}
        for part in (routers, {n: a for n, a in self.actors.items() if n not in routers}):
            await asyncio.to_thread(self._stop_all, part, drain_s)

    def _stop_all(self, actors: dict[str, Any], drain_s: float) -> None:
        limit_s = drain_s + STOP_TIMEOUT_S
        calls = {actor.stop.remote(limit_s): name for name, actor in actors.items()}
        done, late = self.ray.wait(list(calls), num_returns=len(calls) or 1, timeout=limit_s)
        for call in late:
            logger.warning("%s did not stop in %.0f s", calls[call], limit_s)
        for call in done:
            try:
                self.ray.get(call, timeout=1.0)
            except self.ray.exceptions.RayError as error:
                logger.warning("%s ended badly: %s", calls[call], type(error).__name__)


async def await_connected(
    router_address: str, num_instances: int, *, timeout_s: float = CONNECT_TIMEOUT_S
) -> cluster_pb2.StatusReply:
    """A router's status once it is connected to so many instances. Raises PeerLost."""
    async with dial(router_address) as channel:
        stub = cluster_pb2_grpc.ClusterStub(channel)
        try:
            async with asyncio.timeout(timeout_s):
                while _num_connected(reply := await _status(stub)) < num_instances:  # noqa: ASYNC110
                    # Another process: there is no event to wait for.
                    await asyncio.sleep(CONNECT_PROBE_S)
                return reply
        except (TimeoutError, grpc.aio.AioRpcError) as error:
            raise PeerLost(
                f"router {router_address} is not connected to {num_instances} instances "
                f"after {timeout_s} s"
            ) from error


async def _status(stub: "cluster_pb2_grpc.ClusterAsyncStub") -> cluster_pb2.StatusReply:
    return await stub.Status(cluster_pb2.StatusRequest(), timeout=CONNECT_TIMEOUT_S)


def _num_connected(reply: cluster_pb2.StatusReply) -> int:
    return sum(instance.connected for instance in reply.instances)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorSpec:
    """One actor to start."""

    name: str
    kind: str
    """router or instance."""
    spec_json: str
    log_level: str
    log_format: str
    num_cpus: float
    num_gpus: float


@asynccontextmanager
async def start_cluster(
    spec: ClusterSpec, on_progress: Progress = lambda _: None
) -> AsyncIterator[Cluster]:
    """Run a cluster on a private Ray of this machine until the block ends; leaves nothing.

    Raises a BatonError when it cannot start: model, port and memory are looked at first.
    """
    await _check(spec)
    async with AsyncExitStack() as stack:
        url = spec.registry_url
        if url is None:
            on_progress("starting Valkey")
            url = (await stack.enter_async_context(EmbeddedValkey())).url
        members = list(_members(spec, url))
        on_progress("starting Ray")
        num_cpus = sum(member.num_cpus for member in members)
        num_gpus = sum(member.num_gpus for member in members)
        ray = stack.enter_context(private_ray(num_cpus=int(num_cpus) + 1, num_gpus=int(num_gpus)))
        cluster = Cluster(ray=ray, registry_url=url)
        on_progress(f"loading the model into {len(members) - spec.plan.router.replicas} instances")
        # Broken off while it starts, there is nothing to drain: Ray ends the processes.
        await cluster.start(members, on_progress)
        try:
            yield cluster
        finally:
            on_progress("stopping")
            await cluster.stop(spec.drain_s)


async def _check(spec: ClusterSpec) -> None:
    """Raise what a cluster would die of, before anything is started."""
    if not (spec.model_dir / "config.json").is_file():
        raise ModelError(f"{spec.model_dir}: no config.json, so not a model directory")
    check_memory(
        cluster_bytes(spec.plan, spec.config.engine, spec.model_dir), available_memory_bytes()
    )
    for port in (spec.router_port, spec.http_port):
        if port:
            check_port(port)
    # Last: it takes seconds, the others nothing.
    await check_model(spec.model_dir, layouts=spec.plan.layouts)


def check_port(port: int) -> None:
    """Raise BindFailed when a router cannot listen on it."""
    with socket.socket() as probe:
        # As servers do: connections that just ended keep a port from nobody.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise BindFailed(f"cannot listen on 127.0.0.1:{port}: {error.strerror}") from error


def _members(spec: ClusterSpec, registry_url: str) -> Iterator[ActorSpec]:
    plan = spec.plan
    pools = {Role.PREFILL: plan.prefill, Role.DECODE: plan.decode, Role.MIXED: plan.mixed}
    for role, pool in pools.items():
        for index in range(pool.replicas):
            yield _instance(spec, registry_url, role, pool, f"{role}-{index}")
    for index in range(plan.router.replicas):
        yield _router(spec, registry_url, index)


def _instance(
    spec: ClusterSpec, registry_url: str, role: Role, pool: PoolPlan, name: str
) -> ActorSpec:
    instance = InstanceSpec(
        instance_id=InstanceId(name),
        role=role,
        model_dir=spec.model_dir,
        config=spec.config,
        layout=pool.layout,
        model_name=spec.plan.model_name,
        registry_url=registry_url,
        cluster=spec.name,
        drain_s=spec.drain_s,
    )
    kind = spec.plan.type_of(pool)
    # One bundle for all ranks: they are children of the instance's process, so on its host.
    return ActorSpec(
        name=name,
        kind="instance",
        spec_json=instance.to_json(),
        log_level=spec.log_level,
        log_format=spec.log_format,
        num_cpus=kind.num_cpus * pool.layout.num_workers,
        num_gpus=kind.num_gpus * pool.layout.num_workers,
    )


def _router(spec: ClusterSpec, registry_url: str, index: int) -> ActorSpec:
    router = RouterSpec(
        router_id=RouterId(f"router-{index}"),
        model_dir=spec.model_dir,
        config=spec.config.router,
        speed=spec.speed,
        registry_url=registry_url,
        cluster=spec.name,
        port=spec.router_port if index == 0 else 0,
        http_port=spec.http_port if index == 0 else 0,
        max_decoding=spec.config.worker.max_running,
        drain_s=spec.drain_s,
    )
    return ActorSpec(
        name=f"router-{index}",
        kind="router",
        spec_json=router.to_json(),
        log_level=spec.log_level,
        log_format=spec.log_format,
        num_cpus=0,
        num_gpus=0,
    )


def threads_per_instance(plan: Plan) -> int:
    """Share this machine's cores evenly among the ranks of the plan's instances; at least one
    each."""
    return max(1, (os.cpu_count() or 1) // max(1, plan.num_ranks))
