"""What only a real store shows: its keys, its damage, its silence, its password."""

import asyncio
import os
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from core.clock import ManualClock
from core.errors import ConfigError
from core.member import MAX_MEMBER_JSON_BYTES
from registry.api import Registry, RegistryUnavailable
from registry.connect import connect, redacted
from registry.editions import Draft
from registry.embedded import EmbeddedValkey
from registry.keys import FAMILIES, Keys
from registry.watching import WatchPace
from tests.registry.support import ids, make_member, news, watching


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedValkey]:
    async with EmbeddedValkey() as server:
        yield server


@pytest.fixture
async def registry(server: EmbeddedValkey) -> AsyncIterator[Registry]:
    handle = connect(server.url, "blue")
    yield handle
    await handle.close()


@pytest.fixture
async def raw(server: EmbeddedValkey) -> AsyncIterator["Redis"]:
    async with Redis.from_url(server.url, decode_responses=True) as client:
        yield client


async def test_it_holds_its_declared_key_families_only_and_they_expire(
    registry: Registry, raw: "Redis"
) -> None:
    await registry.announce(make_member("a"), ttl_s=50)
    await registry.announce(make_member("b"), ttl_s=20)  # shorter: must not shorten the index
    term = await registry.lead("controller-1", "127.0.0.1:7000", term=None, ttl_s=50)
    await registry.put_deployment("deployment", term=term)
    await registry.put_settings(Draft(text="", author="a"))
    await registry.shared_key(bytes(32))
    keys = Keys("blue")
    found = [key async for key in raw.scan_iter()]
    assert len(found) == 10
    assert all(keys.declares(key) for key in found)
    ttls_ms = {key.removeprefix(keys.prefix): await raw.pttl(key) for key in found}
    staying = {family.suffix for family in FAMILIES if not family.expires}
    assert {ttls_ms.pop(suffix) for suffix in staying} == {-1}
    assert 15_000 < ttls_ms.pop("member:b") <= 20_000
    assert all(45_000 < ttl_ms <= 50_000 for ttl_ms in ttls_ms.values())


@pytest.mark.parametrize(
    ("key", "want"),
    [
        ("baton:{blue}:deployment", True),
        ("baton:{blue}:member:a", True),
        ("baton:{blue}:member:", False),
        ("baton:{blue}:deployments", False),
        ("baton:{green}:deployment", False),
        ("other", False),
    ],
)
def test_declared_keys(key: str, want: bool) -> None:
    assert Keys("blue").declares(key) is want
    assert len({family.suffix for family in FAMILIES}) == len(FAMILIES)


async def test_the_index_forgets_the_dead(registry: Registry, raw: "Redis") -> None:
    await raw.zadd(Keys("blue").members, {f"dead-{i}": 1 for i in range(100)})
    await registry.announce(make_member("a"), ttl_s=50)
    assert await raw.zrange(Keys("blue").members, 0, -1) == ["a"]


async def test_clusters_do_not_see_each_other(server: EmbeddedValkey, registry: Registry) -> None:
    green = connect(server.url, "green")
    await registry.announce(make_member(), ttl_s=50)
    await registry.put_deployment("blue's", term=1)
    assert await green.members() == ()
    assert await green.deployment() is None
    await green.close()


DAMAGE = ["{", "[]", "\x00", "x" * (MAX_MEMBER_JSON_BYTES + 1), make_member("someone").to_json()]


@pytest.mark.parametrize("value", DAMAGE, ids=["cut", "list", "nul", "too long", "stolen"])
async def test_a_damaged_record_is_left_out_and_reported_once(
    registry: Registry, raw: "Redis", caplog: pytest.LogCaptureFixture, value: str
) -> None:
    keys = Keys("blue")
    await registry.announce(make_member("good"), ttl_s=50)
    await raw.zadd(keys.members, {"bad": 2**53, "wrong type": 2**53, "gone": 2**53})
    await raw.set(keys.member_prefix + "bad", value)
    await raw.lpush(keys.member_prefix + "wrong type", "x")
    for _ in range(3):
        assert ids(await registry.members()) == ["good"]
    assert len([r for r in caplog.records if "left out" in r.message]) == 2


async def test_a_store_of_the_wrong_shape_is_unavailable_not_a_crash(
    registry: Registry, raw: "Redis"
) -> None:
    await raw.set(Keys("blue").members, "no sorted set")
    with pytest.raises(RegistryUnavailable, match="WRONGTYPE"):
        await registry.members()
    with pytest.raises(RegistryUnavailable, match="WRONGTYPE"):
        await registry.announce(make_member(), ttl_s=5)


RECORDS = ["", "x", "7", "7 a", "-7 a h:1", "0 a h:1", "7 a b h:1", "7 a nowhere", "1e9 a h:1"]


@pytest.mark.parametrize("record", RECORDS)
async def test_damaged_records_of_a_leader_are_none(
    registry: Registry, raw: "Redis", record: str
) -> None:
    keys = Keys("blue")
    for key in (keys.leader, keys.term):
        await raw.set(key, record)
    assert await registry.leader() is None
    assert (await registry.state()).last_leader is None
    await registry.resign("a", 7)
    await raw.delete(keys.leader)
    term = await registry.lead("controller-1", "127.0.0.1:7000", term=None, ttl_s=5)
    assert term > 1e12  # the store's clock, milliseconds
    await registry.put_deployment("text", term=term)


async def test_a_store_that_takes_no_writes_is_unavailable(
    registry: Registry, raw: "Redis"
) -> None:
    """A full disk or memory (reliability F16): what is there can still be read."""
    await registry.announce(make_member(), ttl_s=50)
    await raw.config_set("maxmemory", "1")
    for write in (
        registry.announce(make_member("b"), ttl_s=5),
        registry.put_deployment("text", term=1),
        registry.lead("controller-1", "127.0.0.1:7000", term=None, ttl_s=5),
    ):
        with pytest.raises(RegistryUnavailable):
            await write
    assert ids(await registry.members()) == ["decode-0"]


async def test_a_frozen_store_costs_a_bounded_time(
    server: EmbeddedValkey, registry: Registry
) -> None:
    await registry.announce(make_member(), ttl_s=50)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        begun_s = time.monotonic()
        with pytest.raises(RegistryUnavailable):
            await registry.members()
        assert time.monotonic() - begun_s < 4.0
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert ids(await registry.members()) == ["decode-0"]


async def test_a_change_nudges_watches_long_before_the_next_reading(
    server: EmbeddedValkey, registry: Registry
) -> None:
    slow = connect(server.url, "blue", pace=WatchPace(reread_s=1000.0), clock=ManualClock())
    async with asyncio.timeout(10), watching(slow) as watch:
        assert await news(watch) == ()
        await registry.announce(make_member("a"), ttl_s=50)
        assert ids(await news(watch)) == ["a"]
        async with asyncio.TaskGroup() as group:
            for i in range(50):
                group.create_task(registry.announce(make_member(f"b{i}"), ttl_s=50))
        while len(await news(watch)) < 51:
            pass
    await slow.close()


async def test_nothing_shows_the_password(
    server: EmbeddedValkey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    password = server.url.split(":")[2].split("@")[0]
    wrong = connect(server.url.replace(password, "canary-" + password), "blue")
    with pytest.raises(RegistryUnavailable) as refused:
        await wrong.members()
    server.kill()
    with pytest.raises(RegistryUnavailable) as lost:
        await wrong.members()
    texts = [str(refused.value), str(lost.value), caplog.text, repr(server), repr(wrong)]
    texts.append(redacted(server.url))
    assert not [text for text in texts if password in text]
    await wrong.close()


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    """A server's side, of a certificate that is its own authority, in `tmp_path`."""
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    what = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        ["openssl", "req", "-x509", *what, *name, "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
        timeout=30,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


TLS_CASES = [
    # id                      the server's newest TLS          host         trusts it   error
    ("TLS 1.3", ssl.TLSVersion.TLSv1_3, "localhost", True, None),
    ("TLS 1.2 is too old", ssl.TLSVersion.TLSv1_2, "localhost", True, "Error connecting"),
    ("unknown authority", ssl.TLSVersion.TLSv1_3, "localhost", False, "CERTIFICATE_VERIFY"),
    ("another's name", ssl.TLSVersion.TLSv1_3, "127.0.0.1", True, "CERTIFICATE_VERIFY"),
]


@pytest.mark.parametrize(
    ("newest", "host", "trusted", "error"),
    [c[1:] for c in TLS_CASES],
    ids=[c[0] for c in TLS_CASES],
)
async def test_rediss(
    server: EmbeddedValkey,
    tls: ssl.SSLContext,
    tmp_path: Path,
    newest: ssl.TLSVersion,
    host: str,
    trusted: bool,
    error: str | None,
) -> None:
    tls.maximum_version = newest
    async with _tls_front(server, tls) as port:
        password = server.url.split(":")[2].split("@")[0]
        query = f"?ssl_ca_certs={tmp_path}/cert.pem" if trusted else ""
        registry = connect(f"rediss://:{password}@{host}:{port}/0{query}", "blue")
        if error is None:
            assert await registry.members() == ()
        else:
            with pytest.raises(RegistryUnavailable, match=error):
                await registry.members()
        await registry.close()


@asynccontextmanager
async def _tls_front(server: EmbeddedValkey, tls: ssl.SSLContext) -> AsyncIterator[int]:
    """The embedded server speaks no TLS: this does, on the port it yields."""
    back_port = int(server.url.rsplit(":", 1)[1].split("/")[0])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_connection("127.0.0.1", back_port)
        async with asyncio.TaskGroup() as group:
            group.create_task(_pipe(reader, back_writer))
            group.create_task(_pipe(back_reader, writer))

    front = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with front:
        yield front.sockets[0].getsockname()[1]


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async with asyncio.timeout(30):
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()


BAD_URLS = [
    ("scheme", "http://h:1"),
    ("no scheme", "secret"),
    ("no host", "redis://:secret@"),
    ("port", "redis://:secret@h:99999"),
    ("port text", "redis://:secret@h:x"),
    ("a stray #", "redis://:sec#ret@h:1"),
    ("bracket", "redis://[secret"),
    ("database", "redis://:secret@h:1/secret"),
    ("loosened bound", "redis://:secret@h:1?socket_timeout=9999"),
    ("loosened check", "rediss://:secret@h:1?ssl_cert_reqs=none"),
    ("TLS files without TLS", "redis://:secret@h:1?ssl_keyfile=secret"),
]


@pytest.mark.parametrize("url", [c[1] for c in BAD_URLS], ids=[c[0] for c in BAD_URLS])
def test_bad_urls_are_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        connect(url, "blue")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("url", "want"),
    [
        ("redis://user:secret@h:7", "redis://h:7"),
        ("rediss://:secret@h/2", "rediss://h:6379"),
        ("redis://:secret@[::1]:7", "redis://[::1]:7"),
        ("redis://:secret@h:x", "registry"),
    ],
)
def test_redacted(url: str, want: str) -> None:
    assert redacted(url) == want


@pytest.mark.parametrize("cluster", ["", "{a}", "a b", "a:b", "x" * 65, "-"])
def test_cluster_names_cannot_break_out_of_their_keys(cluster: str) -> None:
    with pytest.raises(ConfigError):
        connect("redis://localhost", cluster)
