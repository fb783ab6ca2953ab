"""From a URL to a registry; the only place that reads the URL, and it never shows its password."""

import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from core.clock import Clock
from core.errors import ConfigError
from registry.api import Registry
from registry.keys import Keys
from registry.redis_registry import RedisRegistry
from registry.store_check import check_store
from registry.watching import DEFAULT_PACE, WatchPace

SOCKET_TIMEOUT_S = 1.0
"""For a connect and for an answer; see redis_registry.CALL_TIMEOUT_S."""
PING_IDLE_S = 10
"""Of a listener that hears nothing: finds connections that died without a word."""
MAX_CONNECTIONS = 32
"""One per watch and one per call at the same time; further calls wait, within their limit."""
TLS_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
"""Query parameters of a rediss:// URL; everything else would loosen our bounds or the check."""


def connect(
    url: str, cluster: str, *, clock: Clock | None = None, pace: WatchPace = DEFAULT_PACE
) -> Registry:
    """A registry over redis:// or rediss:// (TLS 1.3); connects on first use."""
    parts = _split(url)
    if problems := tuple(_problems(parts)):
        raise ConfigError(problems)
    return RedisRegistry(_client(parts), Keys(cluster), where=redacted(url), clock=clock, pace=pace)


async def check_store_at(url: str, cluster: str) -> None:
    """Whether the store there is fit to hold a cluster. Raises ConfigError for the URL, StoreUnfit,
    or RegistryUnavailable."""
    registry = connect(url, cluster)
    try:
        await check_store(registry)
    finally:
        await registry.close()


def redacted(url: str) -> str:
    """Scheme, host and port of `url`: what may be logged."""
    try:
        parts = _split(url)
    except ConfigError:
        return "registry"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port or 6379}"


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port, parts.hostname  # both are parsed, and may raise, only when asked for
    except ValueError:
        # Never quoted, nor chained: a URL that does not parse may be a password in the wrong place.
        raise ConfigError(("registry URL does not parse",)) from None
    return parts


def _problems(parts: SplitResult) -> Iterator[str]:
    if parts.scheme not in {"redis", "rediss"}:
        yield "registry URL must start with redis:// or rediss://"
    if not parts.hostname:
        yield "registry URL names no host"
    database = parts.path.strip("/")
    if database and not (database.isascii() and database.isdigit() and len(database) <= 4):
        yield "registry URL: what follows the host must be a database number"
    allowed = TLS_OPTIONS if parts.scheme == "rediss" else frozenset()
    if unknown := sorted(parse_qs(parts.query, keep_blank_values=True).keys() - allowed):
        yield f"registry URL has {len(unknown)} unknown options; {sorted(allowed)} are known"
    if parts.fragment:
        yield "registry URL has a fragment; write # in a password as %23"


def _client(parts: SplitResult) -> Redis:
    pool = BlockingConnectionPool(
        max_connections=MAX_CONNECTIONS,
        timeout=SOCKET_TIMEOUT_S,
        connection_class=SSLConnection if parts.scheme == "rediss" else Connection,
        host=parts.hostname,
        port=parts.port or 6379,
        db=int(parts.path.strip("/") or 0),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        protocol=2,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        health_check_interval=PING_IDLE_S,
        # Once, at once: a pooled connection may be from before the store's restart.
        retry=Retry(NoBackoff(), retries=1),
        **_tls(parts),
    )
    return Redis.from_pool(pool)


def _tls(parts: SplitResult) -> dict[str, Any]:
    if parts.scheme != "rediss":
        return {}
    files = {name: values[0] for name, values in parse_qs(parts.query).items()}
    return {"ssl_min_version": ssl.TLSVersion.TLSv1_3, **files}
