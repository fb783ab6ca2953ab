"""What a subscription is told of the prefix cache, a bounded part with each frame."""

from engine.prefix_cache import KvNews, PrefixCache

MAX_NAMES = 4096
"""Of one frame: 32 KiB."""


class Follower:
    """Follows one cache for one subscription."""

    def __init__(self, cache: PrefixCache, max_names: int = MAX_NAMES) -> None:
        self._cache = cache
        self._max_names = max_names
        self._position: int | None = None
        """Changes of the cache that were taken; the rest of them may still be untold."""
        self._rest: KvNews | None = None

    def take(self) -> KvNews | None:
        """The next part; None when all is told. The first ones are a snapshot."""
        if self._rest is None and self._position != self._cache.num_changes:
            self._rest = self._cache.news(self._position)
            self._position = self._cache.num_changes
        return None if self._rest is None else self._take_part(self._rest)

    def _take_part(self, news: KvNews) -> KvNews:
        num_stored = min(self._max_names, len(news.stored))
        num_removed = min(self._max_names - num_stored, len(news.removed))
        rest = KvNews(
            is_snapshot=False,
            stored=news.stored[num_stored:],
            removed=news.removed[num_removed:],
        )
        self._rest = rest or None
        return KvNews(
            is_snapshot=news.is_snapshot,
            stored=news.stored[:num_stored],
            removed=news.removed[:num_removed],
        )
