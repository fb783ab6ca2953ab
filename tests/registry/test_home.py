"""A server with a home: the same address and data from one start to the next."""

import asyncio
import socket
from pathlib import Path

import pytest
from redis.asyncio import Redis

from core.errors import ConfigError
from registry import embedded
from registry.connect import connect
from registry.embedded import EmbeddedValkey, ServerNotStarted
from registry.home import RAY_PORTS, ValkeyHome
from tests.registry.support import ends

PASSWORD = "a-password_of-20-chars"


def own_address() -> str:
    """Of this machine and not loopback, where it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: asks which address would be used
            return str(probe.getsockname()[0])
        except OSError:
            pytest.skip("this machine has no address but loopback")


@pytest.fixture
def home(tmp_path: Path) -> ValkeyHome:
    return ValkeyHome.new(tmp_path / "a home" / "data", "127.0.0.1")


async def put(url: str, text: str) -> None:
    registry = connect(url, "c")
    await registry.put_deployment(text, term=1)
    await registry.close()


async def get(url: str) -> str | None:
    registry = connect(url, "c")
    try:
        return await registry.deployment()
    finally:
        await registry.close()


async def test_data_and_address_survive_a_stop(home: ValkeyHome) -> None:
    for before, after in ((None, "first"), ("first", "second"), ("second", "third")):
        async with EmbeddedValkey(home) as server:
            assert server.url == home.url
            assert server.folder == home.folder
            assert await get(home.url) == before
            await put(home.url, after)
            pid = server.pid
        assert pid is not None
        assert ends(pid, 0)
        assert server.folder.exists()
        with pytest.raises(ServerNotStarted):
            _ = server.url


async def test_data_and_address_survive_a_crash(home: ValkeyHome) -> None:
    async with EmbeddedValkey(home) as server:
        await put(home.url, "kept")
        # Written once a second: the crash of the server alone loses nothing, that of a host may.
        server.kill()
        await server.start()
        assert server.url == home.url
        assert await get(home.url) == "kept"


async def test_its_data_are_its_owners_alone(home: ValkeyHome) -> None:
    async with EmbeddedValkey(home):
        await put(home.url, "x")
    made = [home.folder, *home.folder.rglob("*")]
    assert len(made) > 3
    assert [path for path in made if path.stat().st_mode & 0o077] == []
    assert not [p for p in made if p.is_file() and home.password.encode() in p.read_bytes()]


async def test_it_listens_on_its_host_only(tmp_path: Path) -> None:
    host = own_address()
    home = ValkeyHome.new(tmp_path, host)
    async with EmbeddedValkey(home):
        assert await get(f"redis://:{home.password}@{host}:{home.port}/0") is None
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", home.port)) != 0
        reader, writer = await asyncio.open_connection(host, home.port)
        writer.write(b"PING\r\n")
        async with asyncio.timeout(5):
            assert (await reader.readline()).startswith(b"-NOAUTH")
        writer.close()
        await writer.wait_closed()


async def test_a_taken_port_is_not_given_up(
    home: ValkeyHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "MAX_PORT_ATTEMPTS", 2)
    with socket.socket() as taken:
        taken.bind((home.host, home.port))
        taken.listen()
        with pytest.raises(ServerNotStarted, match="in use"):
            await EmbeddedValkey(home).start()
    async with EmbeddedValkey(home):
        assert await get(home.url) is None


async def test_one_home_has_one_server(home: ValkeyHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answers to the second's password: it must not be taken for it."""
    monkeypatch.setattr(embedded, "MAX_PORT_ATTEMPTS", 2)
    async with EmbeddedValkey(home) as first:
        await put(home.url, "kept")
        with pytest.raises(ServerNotStarted):
            await EmbeddedValkey(home).start()
        assert first.pid is not None
        assert await get(home.url) == "kept"
        first.kill()
        await first.start()
        assert await get(home.url) == "kept"


async def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServerNotStarted, match="file"):
        await EmbeddedValkey(ValkeyHome.new(tmp_path / "file" / "data", "127.0.0.1")).start()


async def test_it_never_evicts(home: ValkeyHome) -> None:
    async with EmbeddedValkey(home), Redis.from_url(home.url) as client:
        policy = await client.config_get("maxmemory-policy")
        assert policy == {"maxmemory-policy": "noeviction"}


def test_new_homes_are_strangers(tmp_path: Path) -> None:
    homes = [ValkeyHome.new(tmp_path, "127.0.0.1") for _ in range(20)]
    assert len({home.password for home in homes}) == len(homes)
    assert not [home for home in homes if home.port in RAY_PORTS]
    assert not [home for home in homes if home.password in repr(home)]
    assert homes[0].password in homes[0].url


REFUSED = [
    # id, host, port, password, folder
    ("no host", "", 7000, PASSWORD, "/x"),
    ("two hosts", "127.0.0.1 0.0.0.0", 7000, PASSWORD, "/x"),
    ("a host with a line break", "127.0.0.1\nport 1", 7000, PASSWORD, "/x"),
    ("port 0", "127.0.0.1", 0, PASSWORD, "/x"),
    ("no port", "127.0.0.1", 65536, PASSWORD, "/x"),
    ("a short password", "127.0.0.1", 7000, "short", "/x"),
    ("a password with a line break", "127.0.0.1", 7000, PASSWORD + "\nsave 1", "/x"),
    ("a password that splits a URL", "127.0.0.1", 7000, PASSWORD + "@", "/x"),
    ("a folder with a line break", "127.0.0.1", 7000, PASSWORD, "/x\nport 1"),
]


@pytest.mark.parametrize(
    ("host", "port", "password", "folder"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_homes_that_would_say_something_else(
    host: str, port: int, password: str, folder: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        ValkeyHome(folder=Path(folder), host=host, port=port, password=password)
    assert password not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("192.0.2.7", f"redis://:{PASSWORD}@192.0.2.7:7000/0"),
        ("fd00::7", f"redis://:{PASSWORD}@[fd00::7]:7000/0"),
        ("host-7.example", f"redis://:{PASSWORD}@host-7.example:7000/0"),
    ],
)
def test_where_it_is_reached(host: str, url: str) -> None:
    home = ValkeyHome(folder=Path("/x"), host=host, port=7000, password=PASSWORD)
    assert home.url == url
    assert home.address == url.split("@")[1].removesuffix("/0")
