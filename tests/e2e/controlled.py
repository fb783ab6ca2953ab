"""A real cluster under its controller, on a Ray of its own, with a load that must never notice."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import psutil

from core.config import Config
from deploy.bring_up import Ground, Site, clear_ground, lay_ground
from deploy.controller.deployment import Deployment
from registry.api import Registry, RegistryUnavailable
from registry.connect import connect
from router.client import AsyncClient
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import controller_pb2, controller_pb2_grpc, types_pb2
from tests.e2e.asking import Answer, Question, ask, questions
from tests.e2e.books import what_stays

SETTLE_S = 150.0
"""An instance is up 5 to 30 s after its order, by how busy the machine is; a rolling update starts
four of them one after the other."""
CALL_S = 20.0
NUM_AT_ONCE = 4
RETRY_S = 0.2
USUAL = questions(12, vocab_size=512, prompt_tokens=range(1, 99), output_tokens=range(60, 120))
"""Few: the oracle answers each of them once."""


def deployment(model_dir: Path, plan_toml: str, *, num_blocks: int = 512) -> Deployment:
    """Steps so small that there is time for something to happen in the middle of an answer."""
    config = Config()
    engine = replace(config.engine, num_blocks=num_blocks, num_threads=1)
    worker = replace(config.worker, prefill_step_tokens=16, mixed_step_tokens=16)
    config = replace(config, engine=engine, worker=worker)
    return Deployment(plan_toml=plan_toml, model=str(model_dir), config=config, log_level="INFO")


def plan_toml(num_prefill: int, num_decode: int, *, num_routers: int = 2, more: str = "") -> str:
    """With a name for the model that outlives its weights."""
    return (
        f'model_name = "tiny"\ndrain_s = 20.0\n{more}\n'
        f"[prefill]\nreplicas = {num_prefill}\n\n[decode]\nreplicas = {num_decode}\n\n"
        f"[router]\nreplicas = {num_routers}\n"
    )


@dataclass(slots=True)
class Controlled:
    """What tests do with it. The controller is looked up anew each time: it may be another."""

    site: Site
    ground: Ground
    first: Deployment

    def with_plan(self, text: str) -> Deployment:
        """The first deployment with another plan."""
        return replace(self.first, plan_toml=text)

    async def call(self, method: str, request: object, timeout_s: float = CALL_S) -> object:
        """One call of the Controller service, of whoever leads."""
        async with asyncio.timeout(timeout_s):
            address = await self.controller_address()
            async with dial(address, plane=Plane.CLIENT) as channel:
                stub = controller_pb2_grpc.ControllerStub(channel)
                reply: object = await getattr(stub, method)(request, timeout=timeout_s)
                return reply

    async def controller_address(self) -> str:
        """As the registry has it."""
        registry = connect(self.ground.registry_url, self.site.name)
        try:
            # Another process: there is no event to wait for.
            while (leader := await registry.leader()) is None:  # noqa: ASYNC110
                await asyncio.sleep(RETRY_S)
            return leader.address
        finally:
            await registry.close()

    async def until_another_leads(self, term: int) -> None:
        """Once a controller of a higher term has been granted it."""
        registry = connect(self.ground.registry_url, self.site.name)
        try:
            async with asyncio.timeout(SETTLE_S):
                # Another process: there is no event to wait for.
                while (await self._term(registry)) <= term:  # noqa: ASYNC110
                    await asyncio.sleep(RETRY_S)
        finally:
            await registry.close()

    async def _term(self, registry: Registry) -> int:
        leader = await registry.leader()
        return leader.term if leader else 0

    async def deployment(self) -> str:
        """As soon as the registry has one."""
        registry = connect(self.ground.registry_url, self.site.name)
        try:
            async with asyncio.timeout(SETTLE_S):
                # Another process: there is no event to wait for.
                while True:
                    with suppress(RegistryUnavailable):
                        if (text := await registry.deployment()) is not None:
                            return text
                    await asyncio.sleep(RETRY_S)
        finally:
            await registry.close()

    async def empty_registry(self) -> None:
        """Everything of the cluster is gone there."""
        registry = connect(self.ground.registry_url, self.site.name)
        try:
            await registry.forget()
        finally:
            await registry.close()

    async def put(self, wanted: Deployment) -> None:
        """Put it in force."""
        await self.call("Deploy", controller_pb2.DeployRequest(deployment_json=wanted.to_json()))

    async def until(
        self, holds: Callable[[controller_pb2.ClusterState], bool], timeout_s: float = SETTLE_S
    ) -> controller_pb2.ClusterState:
        """The first state of which this holds."""
        last = None
        try:
            async with asyncio.timeout(timeout_s):
                async with dial(await self.controller_address(), plane=Plane.CLIENT) as channel:
                    stub = controller_pb2_grpc.ControllerStub(channel)
                    async for last in stub.Watch(controller_pb2.WatchRequest()):
                        if holds(last):
                            return last
        except TimeoutError:
            raise AssertionError(f"not in {timeout_s} s; last seen: {last}") from None
        raise AssertionError("the controller ended")

    async def settled(self) -> controller_pb2.ClusterState:
        """Once all is as planned."""
        return await self.until(lambda state: state.settled)

    async def check_books(self) -> None:
        """Law 2 on every instance."""
        for member in (await self.settled()).members:
            if member.role != types_pb2.ROLE_ROUTER:
                async with dial(member.address) as channel:
                    problem = await what_stays(channel)
                assert problem is None, f"{member.name}: {problem}"


def controlled(name: str, wanted: Deployment) -> AbstractAsyncContextManager[Controlled]:
    """On a Ray of its own."""
    return controlled_at(Site(name=name, log_level="INFO"), wanted)


@asynccontextmanager
async def controlled_at(site: Site, wanted: Deployment) -> AsyncIterator[Controlled]:
    """Up and settled; whatever happens, down again."""
    try:
        ground = await lay_ground(site, lambda _: None)
        cluster = Controlled(site, ground, wanted)
        await cluster.put(wanted)
        await cluster.settled()
        yield cluster
    finally:
        await clear_ground(site)


def routers_of(state: controller_pb2.ClusterState) -> list[str]:
    """host:port of each router that serves."""
    return [
        member.address
        for member in state.members
        if member.role == types_pb2.ROLE_ROUTER and member.state == "serving"
    ]


def pid_at(address: str) -> int:
    """Of the process that listens there."""
    port = int(address.rpartition(":")[2])
    for found in psutil.net_connections("tcp"):
        here = found.laddr and found.laddr.port == port
        if found.status == psutil.CONN_LISTEN and here and found.pid:
            return found.pid
    raise AssertionError(f"nobody listens at {address}")


def kill_at(address: str) -> None:
    """SIGKILL."""
    os.kill(pid_at(address), signal.SIGKILL)


async def under_load(
    routers: list[str],
    work: Coroutine[object, object, None],
    *,
    asked: Sequence[Question] = USUAL,
) -> list[Answer]:
    """All answers that were asked for while `work` went on. A request that fails, fails this."""
    answers, is_over, turns = list[Answer](), asyncio.Event(), cycle(asked)

    async def ask_on(client: AsyncClient, mine: Callable[[], Question]) -> None:
        while not is_over.is_set():
            answers.append(await ask(client, mine()))

    async with AsyncClient(routers) as client, asyncio.TaskGroup() as group:
        for _ in range(NUM_AT_ONCE):
            group.create_task(ask_on(client, lambda: next(turns)))
        await work
        is_over.set()
    return answers


def events_since(state: controller_pb2.ClusterState, at_unix_s: float) -> list[str]:
    """For the printed parts: what happened so many seconds after a moment of this host's clock."""
    return [
        f"+{event.at_unix_s - at_unix_s:5.1f} s  {event.member} {event.text}"
        for event in state.events
        if event.at_unix_s >= at_unix_s
    ]
