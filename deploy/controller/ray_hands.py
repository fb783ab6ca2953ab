"""The controller's hands on Ray: detached actors in a namespace of their own, one per member."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from core.errors import PeerLost
from core.member import Role
from deploy.actors import READY_TIMEOUT_S, ServiceActor, StartFailed, host_address
from deploy.controller.fit import Host
from deploy.controller.hands import Born, Found, Order, Unfinished
from deploy.log_files import UnknownLog, log_path, read_piece
from deploy.places import place_of

if TYPE_CHECKING:
    from ray import ObjectRef

logger = logging.getLogger(__name__)

T = TypeVar("T")

CALL_TIMEOUT_S = 20.0
"""Of one question to Ray. Creating an actor waits for its store, which a disk may hold up."""
PLACE_TIMEOUT_S = 15.0
"""For Ray to put aside what was free a moment ago."""
LOOK_S = 30.0
"""One question whether a member has ended is open so long; an answer comes at once when it does."""
AWAY_PAUSE_S = 1.0
"""Between two attempts to reach an actor that Ray calls unavailable."""
FREE_CALLS = 16
"""Threads of an actor: whoever asked it whether it has ended, and is gone, holds one for LOOK_S."""
STOP_EXTRA_S = 10.0
"""Past the drain: closing servers and channels."""


def namespace_of(cluster: str) -> str:
    """Where the actors of a cluster are named."""
    return f"baton.{cluster}"


class RayHands:
    """Asks Ray in threads, since many of its calls block; never holds the event loop."""

    def __init__(self, ray: Any, cluster: str) -> None:  # noqa: ANN401 - the module
        self._ray = ray
        self._cluster = cluster
        self._namespace = namespace_of(cluster)
        self._actors: dict[str, Any] = {}
        self._hosts: dict[str, str] = {}
        """Of members by name, also of those that have ended: there their logs lie."""

    async def hosts(self) -> Sequence[Host]:
        """See Hands."""
        return await self._asked("its nodes", self._read_hosts)

    async def found(self) -> Sequence[Found]:
        """See Hands."""
        names = await self._asked("its actors", self._named)
        await self._asked("to give back places", lambda: self._give_back(names))
        return [one for name in names if (one := await self._about(name)) is not None]

    async def start(self, order: Order) -> None:
        """See Hands."""
        await self._asked(f"to start {order.name}", lambda: self._start(order))

    async def born(self, name: str) -> Born:
        """See Hands."""
        actor = self._actor(name)
        address, host, load_s = await self._answer(name, actor.born.remote(), READY_TIMEOUT_S)
        self._hosts[name] = host
        actor_id = actor._actor_id.hex()
        return Born(address=address, host=host, actor_id=actor_id, load_s=load_s)

    async def ended(self, name: str) -> str:
        """See Hands."""
        while True:
            try:
                reference = self._actor(name).ended.remote(LOOK_S)
                if await self._answer(name, reference, LOOK_S + CALL_TIMEOUT_S):
                    return "its service has ended"
            except Unfinished as error:
                logger.info("%s: %s", name, error)
                await asyncio.sleep(AWAY_PAUSE_S)
            except (PeerLost, StartFailed) as error:
                return str(error)

    async def end(self, name: str, grace_s: float) -> None:
        """See Hands."""
        if grace_s > 0 and (actor := self._actors.get(name)) is not None:
            try:
                limit_s = grace_s + STOP_EXTRA_S
                await self._answer(name, actor.stop.remote(limit_s), limit_s)
            except (PeerLost, Unfinished, StartFailed) as error:
                logger.info("%s did not end by itself: %s", name, error)
        await self._asked(f"to end {name}", lambda: self._end(name))
        self._actors.pop(name, None)

    async def read_log(self, name: str, offset: int, max_bytes: int) -> tuple[bytes, int]:
        """See Hands."""
        path = log_path(f"{self._cluster}/{name}")
        # The controller and whoever ended before its time left theirs here, if anywhere.
        host = self._hosts.get(name) or host_address()
        if host == host_address():
            return await asyncio.to_thread(read_piece, path, offset, max_bytes)

        def read() -> "ObjectRef[Any]":
            options = {"num_cpus": 0, "resources": {f"node:{host}": 0.001}}
            task = self._ray.remote(read_piece).options(**options)
            reference: ObjectRef[Any] = task.remote(path, offset, max_bytes)
            return reference

        reference = await self._asked(f"for the log of {name}", read)
        piece, following = await self._answer(name, reference, CALL_TIMEOUT_S)
        return piece, following

    # --- blocking, in threads -----------------------------------------------------------------

    def _read_hosts(self) -> list[Host]:
        from ray._private.state import available_resources_per_node

        free = available_resources_per_node()  # type: ignore[no-untyped-call]
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        return [
            Host(address=node["NodeManagerAddress"], free=dict(free.get(node["NodeID"], {})))
            for node in nodes
        ]

    def _named(self) -> list[str]:
        everybody = self._ray.util.list_named_actors(all_namespaces=True)
        names = [actor["name"] for actor in everybody if actor["namespace"] == self._namespace]
        return [name for name in names if name not in ("controller", "store")]

    def _give_back(self, living: Sequence[str]) -> None:
        """The places of members that ended, or never began, while nobody led."""
        from ray.util.placement_group import placement_group_table

        prefix = self._group_name("")
        for group in placement_group_table().values():
            name = group["name"].removeprefix(prefix)
            is_ours = group["name"].startswith(prefix) and group["state"] != "REMOVED"
            if is_ours and name not in living:
                self._remove_group(name)

    def _remove_group(self, name: str) -> None:
        from ray.util.placement_group import get_placement_group, remove_placement_group

        try:
            remove_placement_group(get_placement_group(self._group_name(name)))
        except ValueError:
            logger.debug("%s holds no place", name)

    def _start(self, order: Order) -> None:
        options: dict[str, Any] = {
            "name": order.name,
            "namespace": self._namespace,
            # It outlives this process; only the controller starts another one in its place.
            "lifetime": "detached",
            "max_restarts": 0,
            "max_concurrency": FREE_CALLS,
            "num_cpus": order.bundle.get("CPU", 0),
            "num_gpus": order.bundle.get("GPU", 0),
        }
        pin = {f"node:{order.host}": 0.001} if order.host else {}
        if order.bundle:
            group = self._group_name(order.name)
            bundle = {**order.bundle, **pin}
            place = place_of(group, bundle, lifetime="detached")
            if not place.placement_group.wait(PLACE_TIMEOUT_S):
                self._remove_group(order.name)
                raise Unfinished(f"{order.name}: somebody else was faster on {order.host}")
            options["scheduling_strategy"] = place
        elif pin:
            options["resources"] = pin
        about = {
            "role": order.role.value,
            "make": order.make,
            "bundle": dict(order.bundle),
        }
        self._actors[order.name] = (
            self._ray.remote(ServiceActor)
            .options(**options)
            .remote(
                order.name,
                order.kind,
                order.spec_json,
                order.log_level,
                order.log_format,
                json.dumps(about),
                f"{self._cluster}/{order.name}",
            )
        )
        if order.host:
            self._hosts[order.name] = order.host

    def _end(self, name: str) -> None:
        try:
            actor = self._actors.get(name) or self._ray.get_actor(name, namespace=self._namespace)
            self._ray.kill(actor, no_restart=True)
        except ValueError:
            logger.debug("%s has ended before", name)
        self._remove_group(name)

    def _group_name(self, name: str) -> str:
        return f"{self._namespace}/{name}"

    def _actor(self, name: str) -> Any:  # noqa: ANN401 - a handle
        if name not in self._actors:
            raise PeerLost(f"{name}: no such actor")
        return self._actors[name]

    async def _about(self, name: str) -> Found | None:
        """None: it died between being listed and being asked."""

        def get() -> Any:  # noqa: ANN401 - a handle
            try:
                return self._ray.get_actor(name, namespace=self._namespace)
            except ValueError:
                return None

        if (actor := await self._asked(f"for {name}", get)) is None:
            return None
        self._actors[name] = actor
        try:
            about_json, host = await self._answer(name, actor.about.remote(), CALL_TIMEOUT_S)
        except (PeerLost, StartFailed) as error:
            logger.warning("%s cannot be taken over: %s", name, error)
            await self._asked(f"to end {name}", lambda: self._end(name))
            return None
        self._hosts[name] = host
        about = json.loads(about_json)
        return Found(
            name=name,
            role=Role(about["role"]),
            make=about["make"],
            host=host,
            bundle=Counter(about["bundle"]),
        )

    async def _asked(self, what: str, question: Callable[[], T]) -> T:
        """In a thread, bounded. Raises Unfinished."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await asyncio.to_thread(question)
        except TimeoutError:
            raise Unfinished(f"Ray was asked {what}: no answer in {CALL_TIMEOUT_S:g} s") from None
        except (
            self._ray.exceptions.RayError,
            ConnectionError,
            RuntimeError,
            # A name that is still taken, by one that Ray has not buried yet.
            ValueError,
        ) as error:
            raise Unfinished(f"Ray was asked {what}: {error}") from error

    async def _answer(self, name: str, reference: "ObjectRef[Any]", timeout_s: float) -> Any:  # noqa: ANN401
        """What an actor's call returned; by a future, since a thread could not be cancelled."""
        errors = self._ray.exceptions
        try:
            async with asyncio.timeout(timeout_s):
                answer: Awaitable[Any] = asyncio.wrap_future(reference.future())
                return await answer
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, UnknownLog):
                raise cause from None
            raise StartFailed(str(cause if isinstance(cause, Exception) else error)) from None
        except errors.ActorUnavailableError as error:
            raise Unfinished(f"{name}: unavailable: {error}") from None
        except errors.ActorDiedError as error:
            raise PeerLost(f"{name} died: {_first_line(error)}") from None
        except (TimeoutError, errors.RayError) as error:
            raise Unfinished(f"{name}: no answer: {type(error).__name__}: {error}") from None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
