"""All instances this router knows: listed by the registry, judged by their links."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence

from core.errors import BatonError, NoInstance, UnknownModel
from core.ids import InstanceId, RouterId
from core.member import Member, Role
from registry.api import Registry
from router.link import Health, InstanceLink, Silent
from router.suspects import Suspects
from router.view import View

logger = logging.getLogger(__name__)


class Membership:
    """Owns the links. The registry adds them; only a broken link, or a newer incarnation, ends one.

    So an instance that cannot reach the registry goes on serving, and so does all of the cluster
    while the registry is away.
    """

    def __init__(
        self,
        registry: Registry,
        router_id: RouterId,
        view: View,
        suspects: Suspects,
        *,
        silence_s: float,
    ) -> None:
        self.view = view
        """What the links tell."""
        self.changed = asyncio.Event()
        """Set, and replaced by a new one, when an instance came, went or turned."""
        self._suspects = suspects
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

    @property
    def heard_at_s(self) -> Mapping[InstanceId, float]:
        """Of those whose links are up: when they were last heard."""
        links = self._links.items()
        return {name: link.sight.heard_at_s for name, link in links if link.health is Health.UP}

    @property
    def models(self) -> Sequence[str]:
        """All that are or were served, by name."""
        return sorted({member.model for member in self._known})

    def find_model(self, name: str) -> str:
        """The model as served. Raises NoInstance or UnknownModel."""
        models = self.models
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
                link.sight.describe(member)
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
            member,
            self._router_id,
            silence_s=self._silence_s,
            sight=self.view.join(member),
            on_change=self._sweep,
            on_lost=self._judge,
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

    def _judge(self, link: InstanceLink, error: BatonError) -> None:
        """A crash is what nobody announced, and what the network alone does not explain."""
        name = link.member.instance_id
        if isinstance(error, Silent) or link.sight.load.draining:
            self._suspects.spared(name)
        else:
            self._suspects.died(name)

    def _drop(self, link: InstanceLink) -> None:
        if self._links.get(link.member.instance_id) is link:
            del self._links[link.member.instance_id]
            link.sight.leave()
        if (task := self._tasks.pop(link, None)) is not None:
            task.cancel()


def _is_same(old: Member, new: Member) -> bool:
    return (old.incarnation, old.addresses) == (new.incarnation, new.addresses)
