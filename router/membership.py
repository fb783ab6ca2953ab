"""All instances this router knows: listed by the registry, judged by their links."""

import asyncio
import logging
from collections.abc import Iterable, Sequence

import numpy as np

from core.errors import NoInstance, UnknownModel
from core.ids import Fingerprint, InstanceId, RouterId
from core.member import Member, Role
from policy.placement import ROLE_CODES, Table
from registry.api import Registry
from router.link import Health, InstanceLink

logger = logging.getLogger(__name__)


class Membership:
    """Owns the links. The registry adds them; only a broken link, or a newer incarnation, ends one.

    So an instance that cannot reach the registry goes on serving, and so does all of the cluster
    while the registry is away.
    """

    def __init__(self, registry: Registry, router_id: RouterId, *, silence_s: float) -> None:
        self.changed = asyncio.Event()
        """Set, and replaced by a new one, when an instance came, went or turned."""
        self._registry = registry
        self._router_id = router_id
        self._silence_s = silence_s
        self._links: dict[InstanceId, InstanceLink] = {}
        self._tasks: dict[InstanceLink, asyncio.Task[None]] = {}
        self._listed: frozenset[InstanceId] = frozenset()
        self._known: tuple[Member, ...] = ()
        """As last seen, so that a bad request is told so even when nobody is alive."""

    async def run(self) -> None:
        """Follow the registry until cancelled."""
        async with asyncio.TaskGroup() as group:
            async for members in self._registry.watch():
                self._update(group, members)
            # The handle was closed; the links live on.
            await asyncio.Event().wait()

    @property
    def links(self) -> Sequence[InstanceLink]:
        """In order of instance id."""
        return [self._links[key] for key in sorted(self._links)]

    def get(self, instance_id: InstanceId) -> InstanceLink | None:
        """The link to one instance."""
        return self._links.get(instance_id)

    @property
    def is_ready(self) -> bool:
        """Some instance can be used."""
        return any(link.health is Health.UP for link in self._links.values())

    def find_model(self, name: str) -> str:
        """The model as served. Raises NoInstance or UnknownModel."""
        models = sorted({member.model for member in self._known})
        if not models:
            raise NoInstance("no instance has joined the cluster yet")
        if not name and len(models) == 1:
            return models[0]
        if name not in models:
            # Not repeated: it is a client's text.
            raise UnknownModel(f"no such model here; served: {', '.join(models)}")
        return name

    def max_context_tokens(self, model: str) -> int:
        """What every instance of the model can hold, so that any may take over."""
        return min(
            min(member.max_context_tokens, member.num_blocks * member.block_size)
            for member in self._known
            if member.model == model
        )

    def _update(self, group: asyncio.TaskGroup, members: Iterable[Member]) -> None:
        instances = [member for member in members if member.role is not Role.ROUTER]
        self._listed = frozenset(member.instance_id for member in instances)
        if instances:
            self._known = tuple(instances)
        for member in instances:
            link = self._links.get(member.instance_id)
            if link is not None and _is_same(link.member, member):
                link.member = member
            else:
                self._replace(group, member, link)
        self._sweep()

    def _replace(self, group: asyncio.TaskGroup, member: Member, old: InstanceLink | None) -> None:
        if old is not None:
            self._drop(old)
        logger.info(
            "instance joined instance_id=%s incarnation=%s address=%s",
            member.instance_id,
            member.incarnation,
            member.leader_address,
        )
        link = InstanceLink(
            member, self._router_id, silence_s=self._silence_s, on_change=self._sweep
        )
        self._links[member.instance_id] = link
        self._tasks[link] = group.create_task(link.run())

    def _sweep(self) -> None:
        """Forget who is neither listed nor reachable; tell whoever waits for a change."""
        for link in list(self._links.values()):
            name = link.member.instance_id
            if name not in self._listed and link.health is Health.LOST:
                self._drop(link)
        self.changed.set()
        self.changed = asyncio.Event()

    def _drop(self, link: InstanceLink) -> None:
        if self._links.get(link.member.instance_id) is link:
            del self._links[link.member.instance_id]
        if (task := self._tasks.pop(link, None)) is not None:
            task.cancel()


def _is_same(old: Member, new: Member) -> bool:
    return (old.incarnation, old.addresses) == (new.incarnation, new.addresses)


def table_of(links: Sequence[InstanceLink], model: str) -> Table:
    """The columns that placement decides on; one row per link."""
    fingerprints = {link.member.fingerprint: 0 for link in links}
    codes = {name: code for code, name in enumerate(fingerprints)}
    alive = [link.health is Health.UP and link.member.model == model for link in links]
    loads = [link.load for link in links]

    def ints(values: Iterable[int]) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
        return np.fromiter(values, dtype=np.int64, count=len(links))

    return Table(
        role=ints(ROLE_CODES[link.member.role] for link in links),
        fingerprint=ints(codes[link.member.fingerprint] for link in links),
        alive=np.array(alive, dtype=np.bool_),
        draining=np.array([load.draining for load in loads], dtype=np.bool_),
        num_prefilling=ints(load.num_prefilling for load in loads),
        num_pending_prompt_tokens=ints(load.num_pending_prompt_tokens for load in loads),
        num_incoming=ints(load.num_incoming for load in loads),
        num_decoding=ints(load.num_decoding for load in loads),
        num_free_blocks=ints(load.num_free_blocks for load in loads),
        num_blocks=ints(link.member.num_blocks for link in links),
        block_size=ints(link.member.block_size for link in links),
    )


def fingerprint_code(links: Sequence[InstanceLink], fingerprint: Fingerprint) -> int:
    """The number of a fingerprint in `table_of` the same links; -1 when nobody has it."""
    names = list({link.member.fingerprint: 0 for link in links})
    return names.index(fingerprint) if fingerprint in names else -1
