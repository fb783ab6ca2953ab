"""The routers that read from this instance: their outboxes, subscriptions and grace periods."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from core.clock import Clock
from core.config import WorkerConfig
from core.errors import Saturated
from core.ids import HandoffId, RouterId
from core.load import Load
from core.request import Fence
from core.waiting import wait_at_most
from decode_worker.kv_events import Follower
from decode_worker.outbox import Ack, Outbox, Output
from engine.prefix_cache import KvNews, PrefixCache

logger = logging.getLogger(__name__)

MAX_ROUTERS = 256
"""Each costs an outbox and a stream; a cluster has a handful."""
MIN_LOAD_GAP_S = 0.05
"""Between two frames that only bring load: 20 a second follow any placement decision."""
_COUNTS = attrgetter("num_prefilling", "num_incoming", "num_decoding", "num_swapped", "draining")


@dataclass(slots=True, kw_only=True, eq=False)
class Mailbox:
    """One router's outbox and who reads it."""

    router_id: RouterId
    outbox: Outbox = field(default_factory=Outbox)
    reader: "Subscription | None" = None
    grace: asyncio.TimerHandle | None = None
    """Runs while nobody reads."""
    unnamed: set[HandoffId] = field(default_factory=set)
    """Not named by the present subscription."""
    is_closing: bool = False
    """The instance leaves: what is unread is told, then the subscription ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """All that one router is told at once."""

    outputs: Sequence[Output]
    load: Load
    kv_news: KvNews | None = None
    """Of the prefix cache, when it changed and the router wants to know."""


class Subscription:
    """One stream to one router; over as soon as a newer one replaces it."""

    def __init__(
        self,
        mailbox: Mailbox,
        *,
        clock: Clock,
        beat_s: float,
        load: Callable[[], Load],
        follower: Follower | None = None,
    ) -> None:
        self._mailbox = mailbox
        self._clock = clock
        self._beat_s = beat_s
        self._load = load
        self._follower = follower
        self._sent_at_s = float("-inf")
        self._sent_load = Load()

    @property
    def is_current(self) -> bool:
        """No newer one has come."""
        return self._mailbox.reader is self

    async def next_frame(self) -> Frame | None:
        """All news since the last frame, or a beat; None when nothing more will come.

        The writer asks again only when its last frame is out: a slow one gets fewer, fuller frames.
        """
        news = self._mailbox.outbox.news
        while self.is_current:
            news.clear()
            load = self._load()
            now_s = self._clock.now_s()
            if (wait_s := self._due_at_s(load) - now_s) <= 0:
                self._sent_at_s, self._sent_load = now_s, load
                return self._frame(load)
            if self._mailbox.is_closing:
                return None
            await wait_at_most(news, wait_s)
        return None

    def _frame(self, load: Load) -> Frame:
        # A changed cache alone is no reason for a frame: hints may come with the next beat.
        kv_news = None if self._follower is None else self._follower.take()
        return Frame(outputs=self._mailbox.outbox.take(), load=load, kv_news=kv_news)

    def _due_at_s(self, load: Load) -> float:
        if self._mailbox.outbox.has_news:
            return self._sent_at_s
        is_new = is_material(self._sent_load, load)
        return self._sent_at_s + (MIN_LOAD_GAP_S if is_new else self._beat_s)


class Routers:
    """All mailboxes of the instance."""

    def __init__(
        self,
        *,
        config: WorkerConfig,
        clock: Clock,
        load: Callable[[], Load],
        cache: PrefixCache,
        abandon: Callable[[Iterable[HandoffId]], None],
    ) -> None:
        """`abandon` is told of requests that nobody reads any more."""
        self._config = config
        self._clock = clock
        self._load = load
        self._cache = cache
        self._abandon = abandon
        self._mailboxes: dict[RouterId, Mailbox] = {}

    def outbox_of(self, router_id: RouterId) -> Outbox:
        """Where this router's news go; without a subscription its grace begins."""
        return self._mailbox(router_id).outbox

    def subscribe(
        self, router_id: RouterId, acks: Iterable[Ack], *, wants_kv_events: bool = False
    ) -> Subscription:
        """Start over for this router; requests that it does not name end after the grace."""
        mailbox = self._mailbox(router_id)
        self._stop_grace(mailbox)
        reader = Subscription(
            mailbox,
            clock=self._clock,
            beat_s=self._config.beat_s,
            load=self._load,
            follower=Follower(self._cache) if wants_kv_events else None,
        )
        mailbox.reader = reader
        mailbox.unnamed = set(mailbox.outbox.subscribe(acks))
        if mailbox.unnamed:
            self._start_grace(mailbox, self._end_unnamed)
        logger.info("subscribed router_id=%s unnamed=%d", router_id, len(mailbox.unnamed))
        return reader

    def unsubscribe(self, router_id: RouterId, reader: Subscription) -> None:
        """Its stream ended; nothing happens when a newer one has replaced it."""
        mailbox = self._mailboxes.get(router_id)
        if mailbox is not None and mailbox.reader is reader:
            mailbox.reader = None
            self._start_grace(mailbox, self._end_all)

    def ack(self, router_id: RouterId, acks: Iterable[Ack]) -> None:
        """What this router has read since."""
        mailbox = self._mailbox(router_id)
        for ack in acks:
            mailbox.unnamed.discard(ack.handoff_id)
            mailbox.outbox.ack(ack)

    def forget(self, handoff_id: HandoffId, fence: Fence) -> None:
        """Drop the letters of an ended request, up to this attempt."""
        for mailbox in self._mailboxes.values():
            letters = mailbox.outbox.find(handoff_id)
            if letters is not None and letters.fence <= fence:
                mailbox.outbox.close(handoff_id)

    def load_changed(self) -> None:
        """Let every reader look whether the load is worth a frame."""
        for mailbox in self._mailboxes.values():
            mailbox.outbox.news.set()

    def overfull(self) -> list[HandoffId]:
        """Requests of routers that read too little."""
        limit = self._config.max_unacked_tokens
        return [
            handoff_id
            for mailbox in self._mailboxes.values()
            if mailbox.outbox.num_unacked > limit
            for handoff_id in mailbox.outbox.handoff_ids
        ]

    def close(self) -> None:
        """End all subscriptions with what is unread; no timer is left."""
        for mailbox in self._mailboxes.values():
            self._stop_grace(mailbox)
            mailbox.is_closing = True
            mailbox.outbox.news.set()

    def _mailbox(self, router_id: RouterId) -> Mailbox:
        mailbox = self._mailboxes.get(router_id)
        if mailbox is None:
            if len(self._mailboxes) >= MAX_ROUTERS:
                raise Saturated(f"{len(self._mailboxes)} routers read from here, limit as many")
            mailbox = self._mailboxes[router_id] = Mailbox(router_id=router_id)
            self._start_grace(mailbox, self._end_all)
        return mailbox

    def _start_grace(self, mailbox: Mailbox, end: Callable[[Mailbox], None]) -> None:
        self._stop_grace(mailbox)
        loop = asyncio.get_running_loop()
        mailbox.grace = loop.call_later(self._config.router_grace_s, end, mailbox)

    def _stop_grace(self, mailbox: Mailbox) -> None:
        if mailbox.grace is not None:
            mailbox.grace.cancel()
            mailbox.grace = None

    def _end_unnamed(self, mailbox: Mailbox) -> None:
        logger.info("requests abandoned router_id=%s n=%d", mailbox.router_id, len(mailbox.unnamed))
        unnamed, mailbox.unnamed = mailbox.unnamed, set()
        self._abandon(unnamed)
        for handoff_id in unnamed:
            mailbox.outbox.close(handoff_id)

    def _end_all(self, mailbox: Mailbox) -> None:
        logger.info("router gone router_id=%s n=%d", mailbox.router_id, len(mailbox.outbox))
        del self._mailboxes[mailbox.router_id]
        self._abandon(mailbox.outbox.handoff_ids)


def is_material(told: Load, now: Load) -> bool:
    """Whether a router would place differently: more than token counts have changed."""
    if abs(told.num_free_blocks - now.num_free_blocks) * 16 > now.num_blocks:
        return True
    return _COUNTS(told) != _COUNTS(now)
