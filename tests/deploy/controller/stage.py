"""A controller among fakes: hosts, processes and their answers do what a test tells them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

from core.clock import Clock, ManualClock
from core.errors import BatonError, PeerLost
from core.member import Role
from deploy.actors import StartFailed
from deploy.controller.controller import Controller
from deploy.controller.deployment import Deployment
from deploy.controller.fit import Host
from deploy.controller.hands import Born, Found, Order, Unfinished
from deploy.controller.lives import Reach
from deploy.controller.orders import Cluster
from deploy.controller.record import Record
from deploy.controller.seen import Seen
from rpc.pb import cluster_pb2
from tests.bench.load.virtual import run_virtually

LOAD_S = 2.0
PATIENCE_S = 600.0
"""Of a test, on a clock that takes no time."""
LOOK_S = 0.25


class Process:
    """One that serves after a while, unless it is held or fails."""

    def __init__(self, found: Found, address: str, model: str) -> None:
        self.found, self.address, self.model = found, address, model
        self.role = found.role
        self.known = asyncio.Event()
        """It serves, or it failed."""
        self.error: BatonError | None = None
        self.gone = asyncio.Event()
        self.reason = ""

    def end(self, error: BatonError) -> None:
        """Its process is no more."""
        self.error, self.reason = error, str(error)
        self.known.set()
        self.gone.set()


class FakeHands:
    """Implements Hands."""

    def __init__(self, hosts: Mapping[str, float], load_s: float = LOAD_S) -> None:
        """`hosts`: CPUs by address."""
        self.cpus, self.load_s = dict(hosts), load_s
        self.processes: dict[str, Process] = {}
        self.orders: list[Order] = []
        self.ended_names: list[str] = []
        """By force."""
        self.failing: dict[str, str] = {}
        """By what its spec says, for example a model: why it does not start."""
        self.holding: set[Role] = set()
        """Whoever is started in such a role does not come to serve yet."""
        self.away: dict[str, int] = {}
        """Calls by name: so many of them fail from now on."""
        self.asked: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        """Calls by name: they wait for that."""
        self.logs: dict[str, bytes] = {}
        self._last_port = 4000

    async def hosts(self) -> Sequence[Host]:
        """See Hands."""
        await self._called("hosts")
        return [
            Host(address=address, free={"CPU": cpus - self._taken(address)})
            for address, cpus in self.cpus.items()
        ]

    async def found(self) -> Sequence[Found]:
        """See Hands."""
        await self._called("found")
        return [process.found for process in self.processes.values()]

    async def start(self, order: Order) -> None:
        """See Hands."""
        await self._called("start")
        assert order.name not in self.processes, f"{order.name} has not been ended"
        self.orders.append(order)
        found = Found(
            name=order.name,
            role=order.role,
            make=order.make,
            host=order.host or next(iter(self.cpus)),
            bundle=order.bundle,
        )
        process = self.put(found, order.spec_json)
        if order.role not in self.holding:
            process.known.set()

    async def born(self, name: str) -> Born:
        """See Hands."""
        await self._called("born")
        process = self._process(name)
        await asyncio.sleep(self.load_s)
        await process.known.wait()
        for sign, reason in self.failing.items():
            if sign in process.model:
                process.end(StartFailed(reason))
        if process.error is not None:
            raise process.error
        return Born(
            address=process.address,
            host=process.found.host,
            actor_id=f"of {name}",
            load_s=self.load_s,
        )

    async def ended(self, name: str) -> str:
        """See Hands. Raises nothing: who is not there has ended."""
        process = self.processes.get(name)
        if process is None:
            return f"{name}: no such actor"
        await process.gone.wait()
        return process.reason

    async def end(self, name: str, grace_s: float) -> None:
        """See Hands."""
        await self._called("end")
        process = self.processes.pop(name, None)
        if process is not None:
            if not process.gone.is_set():
                self.ended_names.append(name)
            process.end(PeerLost(f"{name} was ended"))

    async def read_log(self, name: str, offset: int, max_bytes: int) -> tuple[bytes, int]:
        """See Hands."""
        piece = self.logs[name][offset : offset + max_bytes]
        return piece, offset + len(piece)

    # --- what tests do ------------------------------------------------------------------------

    def put(self, found: Found, spec_json: str = "") -> Process:
        """A process that is there, and serves when it is told to."""
        self._last_port += 1
        address = f"{found.host}:{self._last_port}"
        process = self.processes[found.name] = Process(found, address, spec_json)
        return process

    def die(self, name: str, reason: str = "killed by signal 9") -> None:
        """Unasked for; its place stays taken."""
        self.processes[name].end(PeerLost(reason))

    def lose_host(self, address: str) -> None:
        """With all that is there."""
        del self.cpus[address]
        for name, process in self.processes.items():
            if process.found.host == address:
                self.die(name, "its host is gone")

    def release(self, role: Role) -> None:
        """Whoever is held, and whoever comes."""
        self.holding.discard(role)
        for process in self.processes.values():
            if process.found.role is role:
                process.known.set()

    def at(self, address: str) -> Process | None:
        """Who listens there."""
        listening = (p for p in self.processes.values() if not p.gone.is_set())
        return next((p for p in listening if p.address == address), None)

    async def _called(self, call: str) -> None:
        self.asked.append(call)
        # As in the real ones, nothing comes without the event loop having turned.
        await asyncio.sleep(0)
        if call in self.gates:
            await self.gates[call].wait()
        if self.away.get(call, 0) > 0:
            self.away[call] -= 1
            raise Unfinished(f"Ray was asked for {call}: no answer in 20 s")

    def _process(self, name: str) -> Process:
        if name not in self.processes:
            raise PeerLost(f"{name}: no such actor")
        return self.processes[name]

    def _taken(self, address: str) -> float:
        here = [p.found for p in self.processes.values() if p.found.host == address]
        return sum(found.bundle.get("CPU", 0.0) for found in here)


class FakeCalls:
    """Implements Calls. Who is drained ends at once, if it is not stubborn."""

    def __init__(self, hands: FakeHands) -> None:
        self.said: list[tuple[str, object, int]] = []
        """Name, what was asked for, term."""
        self.stubborn = False
        """It drains, and never ends."""
        self.served: list[cluster_pb2.EndedRequest] = []
        """Of whichever router is asked."""
        self.refusing: dict[str, int] = {}
        """Calls by name: so many of them are refused from now on."""
        self.asked: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        """Calls by name: they wait for that."""
        self.hands = hands

    async def drain(self, address: str, timeout_s: float, term: int) -> None:
        """See Calls."""
        process = await self._at(address, "drain")
        self.said.append((process.found.name, timeout_s, term))
        if not self.stubborn:
            process.end(PeerLost("its service has ended"))

    async def change_role(self, address: str, role: Role, term: int) -> None:
        """See Calls."""
        process = await self._at(address, "change_role")
        self.said.append((process.found.name, role, term))
        process.role = role

    async def role(self, address: str) -> Role:
        """See Calls."""
        return (await self._at(address, "role")).role

    async def http_address(self, address: str) -> str:
        """See Calls."""
        process = await self._at(address, "http_address")
        return f"{process.found.host}:{int(address.rpartition(':')[2]) + 1000}"

    async def workload(self, address: str, after: int) -> cluster_pb2.WorkloadReply:
        """See Calls."""
        process = await self._at(address, "workload")
        rest = self.served[after:]
        return cluster_pb2.WorkloadReply(
            requests=rest, next=len(self.served), incarnation=process.address
        )

    async def _at(self, address: str, call: str) -> Process:
        self.asked.append(call)
        await asyncio.sleep(0)
        if call in self.gates:
            await self.gates[call].wait()
        if self.refusing.get(call, 0) > 0:
            self.refusing[call] -= 1
            raise PeerLost(f"{address} does not answer")
        process = self.hands.at(address)
        if process is None:
            raise PeerLost(f"nobody is at {address}")
        return process


def deployed(
    prefill: int = 1,
    decode: int = 1,
    *,
    routers: int = 1,
    decode_tp: int = 1,
    more: str = "",
    model: str = "models/one",
) -> Deployment:
    """Of one processor per rank. `more` comes first in its plan."""
    text = (
        f"drain_s = 5.0\n{more}\n[prefill]\nreplicas = {prefill}\n"
        f"[decode]\nreplicas = {decode}\nlayout = {{ tp = {decode_tp} }}\n"
        f"[router]\nreplicas = {routers}\n"
    )
    return Deployment(plan_toml=text, model=model)


@dataclass
class Stage:
    """What a story is told with."""

    clock: Clock
    hands: FakeHands = field(default_factory=lambda: FakeHands({"a": 8.0, "b": 8.0}))
    record: Record | None = None
    """Left by the controller before."""
    kept: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.calls = FakeCalls(self.hands)
        self.controller = Controller(
            Cluster(name="mine", registry_url="redis://store:1/0"),
            Reach(hands=self.hands, calls=self.calls, clock=self.clock),
            keep=self.kept.append,
            record=self.record,
        )
        self.controller.term = 7

    @property
    def members(self) -> Sequence[Seen]:
        """As the controller sees them."""
        return self.controller.roster.members

    @property
    def told(self) -> list[str]:
        """What happened, one line each."""
        return [f"{e.member}: {e.text}" for e in self.controller.roster.events]

    def names(self, role: Role | None = None, *, serving: bool = False) -> set[str]:
        """Of members of a role, or of all."""
        fitting = [m for m in self.members if role in (None, m.role)]
        return {m.name for m in fitting if m.serves or not serving}

    def one(self, role: Role) -> Seen:
        """The only one."""
        (member,) = (m for m in self.members if m.role is role)
        return member

    @asynccontextmanager
    async def running(self, deployment: Deployment | None = None) -> AsyncIterator[Self]:
        """The controller's loop; with a deployment in force and settled."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.controller.run())
            try:
                if deployment is not None:
                    self.controller.put(deployment)
                    await self.settled()
                yield self
            finally:
                task.cancel()

    async def settled(self) -> None:
        """Nothing is waited for."""
        await self.until(lambda: not self.controller.waits_for)

    async def until(self, condition: Callable[[], bool]) -> None:
        """However long it takes: the clock takes no time."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not condition():  # noqa: ASYNC110 - conditions of other people's making
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            told = "\n".join((*self.told, *self.controller.waits_for))
            raise AssertionError(f"it never came to be:\n{told}\n{self.members}") from None

    def next_controller(self) -> "Stage":
        """Another one after this one's end: the processes live on."""
        return replace(self, record=self.kept[-1] if self.kept else None, kept=[])


Story = Callable[[Stage], Coroutine[Any, Any, None]]


def play(story: Story) -> None:
    """On a clock that moves at once to whatever is waited for."""

    async def work(clock: ManualClock) -> None:
        await story(Stage(clock))

    run_virtually(work)
