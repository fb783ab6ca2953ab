"""A controller as a process: leads, serves, keeps the cluster as planned."""

import asyncio
import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from core.clock import MonotonicClock
from core.errors import BatonError, ConfigError
from deploy.controller.calls import GrpcCalls
from deploy.controller.controller import Controller
from deploy.controller.lives import Reach
from deploy.controller.online import Online
from deploy.controller.orders import Cluster
from deploy.controller.planning import OwnPlanner
from deploy.controller.ray_hands import RayHands
from deploy.controller.record import Record, RecordFile, newest
from deploy.controller.service import SERVICE, ControllerService
from registry.api import Registry, RegistryUnavailable
from registry.connect import connect
from registry.keeping import keep_leading
from registry.leader import Leader
from rpc.options import Plane
from rpc.pb import controller_pb2_grpc
from rpc.serve import Life, bind, build, serve

logger = logging.getLogger(__name__)

FIRST_LOOK_S = 10.0
"""For the registry's copy of the record; then the one on disk has to do."""
LEAD_TTL_S = 3.0
"""The next controller waits that long at most. Nobody else asks to lead, so one that is late for
once loses nothing."""
LAST_WORDS_S = 2.0
"""After the end of the cluster, for those who watch."""


class Deposed(BatonError):
    """Another controller leads; this one must not act any more."""

    status = "ABORTED"


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSpec:
    """Everything it is told. The plan comes through Deploy."""

    cluster: str
    registry_url: str = field(repr=False)
    folder: Path
    """On its host: its copy of the record."""
    host: str = "127.0.0.1"
    """Listened on, and told to others; empty: whoever starts it on a host says."""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self) | {"folder": str(self.folder)})

    @classmethod
    def from_json(cls, text: str) -> "ControllerSpec":
        """What `to_json` wrote. Raises ConfigError."""
        try:
            table = json.loads(text)
            return cls(**{**table, "folder": Path(table["folder"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError((f"controller: {type(error).__name__}: {error}",)) from None


async def run_controller(
    spec: ControllerSpec, *, stop: asyncio.Event, ready: Callable[[str], None]
) -> None:
    """Lead until the cluster is ended, or until `stop`: then the cluster goes on without it.

    Raises Deposed when another controller leads.
    """
    import ray

    registry = connect(spec.registry_url, spec.cluster)
    try:
        await _Process(spec, registry, ray).run(stop, ready)
    finally:
        await registry.close()


class _Process:
    """One controller and what ties it to its cluster."""

    def __init__(self, spec: ControllerSpec, registry: Registry, ray: object) -> None:
        self._spec, self._registry = spec, registry
        self._clock = MonotonicClock()
        self._file = RecordFile(spec.folder / f"{spec.cluster}.json")
        self._unsaved = asyncio.Event()
        self._calls = GrpcCalls()
        hands = RayHands(ray, spec.cluster)
        reach = Reach(hands=hands, calls=self._calls, clock=self._clock)
        self._controller = Controller(
            Cluster(name=spec.cluster, registry_url=spec.registry_url), reach, keep=self._keep
        )
        self._leads = asyncio.Event()

    async def run(self, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
        """Serve first: what is asked before it leads is answered by the state it finds."""
        server = await build(Plane.CLIENT, (SERVICE,))
        planner = OwnPlanner(self._spec.folder)
        online = Online(self._controller, self._calls, planner, self._clock)
        service = ControllerService(self._spec.cluster, self._controller, online, self._clock)
        controller_pb2_grpc.add_ControllerServicer_to_server(service, server.grpc)
        address = f"{self._spec.host}:{bind(server, f'{self._spec.host}:0')}"

        async def control() -> None:
            await self._leads.wait()
            self._controller.record = newest((await self._stored(), self._file.read()))
            serving.set()
            ready(address)
            await self._controller.run()
            # It was told to end, and nothing is left to lead.
            self._file.remove()
            await asyncio.sleep(LAST_WORDS_S)
            stop.set()
            await asyncio.Event().wait()

        async def lead() -> None:
            await keep_leading(
                self._registry,
                f"controller-{secrets.token_hex(4)}",
                address,
                on_term=self._on_term,
                on_lost=self._on_lost,
                deployment=self._text,
                stop=stop,
                ttl_s=LEAD_TTL_S,
            )
            await asyncio.Event().wait()

        async def nothing() -> None:
            return

        serving = asyncio.Event()
        life = Life(ready=serving, stop=stop, drain=nothing, drain_s=0.0)
        await serve(server, (lead, control, self._save, online.run), life)

    def _on_term(self, term: int) -> None:
        self._controller.term = term
        self._leads.set()

    def _on_lost(self, leader: Leader) -> None:
        raise Deposed(f"{leader.holder} at {leader.address} leads, with term {leader.term}")

    async def _stored(self) -> str | None:
        """The registry's copy; None when it has none, or is away for too long."""
        try:
            async with asyncio.timeout(FIRST_LOOK_S):
                while True:
                    try:
                        return await self._registry.deployment()
                    except RegistryUnavailable as error:
                        logger.warning("record not read: %s", error)
                        await asyncio.sleep(1.0)
        except TimeoutError:
            return None

    def _text(self) -> str | None:
        record = self._controller.record
        return None if record is None else record.to_json()

    def _keep(self, record: Record) -> None:
        self._file.write(record.to_json())
        self._unsaved.set()

    async def _save(self) -> None:
        """To the registry, as soon as it can be had; the disk has it already."""
        while True:
            await self._unsaved.wait()
            self._unsaved.clear()
            text = self._text()
            try:
                if text is not None:
                    await self._registry.put_deployment(text, term=self._controller.term)
            except RegistryUnavailable as error:
                logger.warning("record not put: %s", error)
                await asyncio.sleep(1.0)
                self._unsaved.set()
