"""A cluster from a plan: registry, Ray actors for instances and routers, and their end."""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio

from core.config import Config
from core.errors import BatonError, ModelError, PeerLost
from core.member import Role
from core.plan import Plan
from core.plan_text import plan_text
from deploy.actors import READY_TIMEOUT_S, ServiceActor, StartFailed
from deploy.check_model import check_model
from deploy.controller.decide import Start, router_name
from deploy.controller.deployment import Deployment
from deploy.controller.hands import Order
from deploy.controller.orders import Cluster as Members
from deploy.controller.orders import instance_order, router_order
from deploy.memory import available_memory_bytes, check_memory, cluster_bytes
from deploy.places import place_of
from deploy.ray_runtime import private_ray
from registry.connect import check_store_at
from registry.embedded import EmbeddedValkey
from router.spec import Speed
from rpc.dial import dial
from rpc.pb import cluster_pb2, cluster_pb2_grpc
from rpc.serve import BindFailed

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
"""This machine alone is served."""
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
    """Of the first router, in place of the plan's."""
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

    async def start(self, orders: list[Order], on_progress: Progress) -> None:
        """Start all actors at once, and wait until each serves."""
        for order in orders:
            self.actors[order.name] = self._actor(order)
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

    def _actor(self, order: Order) -> "ActorHandle[Any]":
        options: dict[str, Any] = {
            "num_cpus": order.bundle.get("CPU", 0),
            "num_gpus": order.bundle.get("GPU", 0),
            "max_restarts": -1,
            # Calls that meet a restart wait for it.
            "max_task_retries": -1,
            "max_concurrency": FREE_CALLS,
        }
        if order.bundle:
            options["scheduling_strategy"] = place_of(order.name, order.bundle)
        actor = self.ray.remote(ServiceActor).options(**options)
        handle: ActorHandle[Any] = actor.remote(
            order.name, order.kind, order.spec_json, order.log_level, order.log_format
        )
        return handle

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
        orders = list(_orders(spec, url))
        on_progress("starting Ray")
        num_cpus, num_gpus = (sum(o.bundle.get(kind, 0) for o in orders) for kind in ("CPU", "GPU"))
        ray = stack.enter_context(private_ray(num_cpus=int(num_cpus) + 1, num_gpus=int(num_gpus)))
        cluster = Cluster(ray=ray, registry_url=url)
        on_progress(f"loading the model into {len(orders) - spec.plan.router.replicas} instances")
        # Broken off while it starts, there is nothing to drain: Ray ends the processes.
        await cluster.start(orders, on_progress)
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
    if spec.registry_url is not None:
        await check_store_at(spec.registry_url, spec.name)
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


def _orders(spec: ClusterSpec, registry_url: str) -> Iterator[Order]:
    cluster = Members(name=spec.name, registry_url=registry_url, host=HOST)
    deployment = _deployment(spec)
    plan = deployment.plan
    for role, pool in plan.pools.items():
        start = Start(role=role, make="")
        for index in range(pool.replicas):
            order = instance_order(cluster, deployment, start, f"{role}-{index}", "")
            # This Ray counts nothing else: what other resources stand for is here, or nowhere.
            counted = {name: n for name, n in order.bundle.items() if name in ("CPU", "GPU")}
            yield replace(order, bundle=counted)
    for index in range(plan.router.replicas):
        start = Start(role=Role.ROUTER, make="", name=router_name(index))
        yield router_order(cluster, deployment, start, {})


def _deployment(spec: ClusterSpec) -> Deployment:
    doors = spec.plan.router
    router = replace(
        doors,
        port=spec.router_port or doors.port,
        http_port=spec.http_port or doors.http_port,
    )
    return Deployment(
        plan_toml=plan_text(replace(spec.plan, router=router, drain_s=spec.drain_s)),
        model=str(spec.model_dir),
        config=spec.config,
        speed=spec.speed,
        log_level=spec.log_level,
        log_format=spec.log_format,
    )


def threads_per_instance(plan: Plan) -> int:
    """Share this machine's cores evenly among the ranks of the plan's instances; at least one
    each."""
    return max(1, (os.cpu_count() or 1) // max(1, plan.num_ranks))
