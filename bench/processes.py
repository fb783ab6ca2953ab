"""Instances and routers as plain processes: what is measured here needs no Ray."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import grpc.aio

from core.config import Config
from core.ids import InstanceId, RouterId
from core.member import Role
from core.parallel import ParallelLayout
from core.prefix import KEY_BYTES
from deploy.cluster import await_connected
from deploy.instance import InstanceSpec
from registry.embedded import EmbeddedValkey
from router.client import AsyncClient
from router.spec import RouterSpec
from rpc.dial import dial

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
DRAIN_S = 2.0
CLUSTER = "bench"
CLUSTER_KEY = bytes(range(KEY_BYTES))
"""Known, so that a benchmark can fetch KV itself."""


@dataclass(frozen=True, slots=True)
class Service:
    """One running process."""

    address: str
    process: "subprocess.Popen[str]"


@contextmanager
def service(module: str, spec_json: str) -> Iterator[Service]:
    """Run `python -m module --spec-json …` until the block ends; it dies with us."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, "--spec-json", spec_json],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        # A process that ends without a line gives an empty one; one that hangs is the caller's
        # time limit.
        line = cast("IO[str]", process.stdout).readline()
        if not line:
            raise RuntimeError(f"{module} ended with status {process.wait(STOP_TIMEOUT_S)}")
        yield Service(json.loads(line)["address"], process)
    finally:
        cast("IO[str]", process.stdin).close()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT_S)
        cast("IO[str]", process.stdout).close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """Running instances and one router."""

    client: AsyncClient
    channels: Sequence[grpc.aio.Channel]
    """To the instances, in the order asked for."""
    pids: Sequence[int]
    """Of the instances, in that order, then of the router."""


@asynccontextmanager
async def running(
    model_dir: Path,
    roles: Sequence[Role],
    config: Config | None = None,
    layout: ParallelLayout | None = None,
) -> AsyncIterator[Processes]:
    """Start one instance of each role and a router; stop them when the block ends."""
    config = config or Config()
    async with AsyncExitStack() as stack:
        url = (await stack.enter_async_context(EmbeddedValkey())).url
        specs = [
            InstanceSpec(
                instance_id=InstanceId(f"{role}-{index}"),
                role=role,
                model_dir=model_dir,
                config=config,
                layout=layout or ParallelLayout(),
                registry_url=url,
                cluster=CLUSTER,
                cluster_key=CLUSTER_KEY.hex(),
                drain_s=DRAIN_S,
            )
            for index, role in enumerate(roles)
        ]
        instances = [
            stack.enter_context(service("deploy.instance", spec.to_json())) for spec in specs
        ]
        router_spec = RouterSpec(
            router_id=RouterId("router-0"),
            model_dir=model_dir,
            registry_url=url,
            cluster=CLUSTER,
            config=config.router,
            drain_s=DRAIN_S,
        )
        router = stack.enter_context(service("router.server", router_spec.to_json()))
        await await_connected(router.address, len(instances))
        yield Processes(
            client=await stack.enter_async_context(AsyncClient([router.address])),
            channels=[await stack.enter_async_context(dial(i.address)) for i in instances],
            pids=[process.process.pid for process in (*instances, router)],
        )
