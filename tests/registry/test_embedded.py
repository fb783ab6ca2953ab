"""The embedded server: there when asked for, gone without a trace when not."""

import asyncio
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from registry import embedded, home, scratch
from registry.connect import connect
from registry.embedded import EmbeddedValkey, ServerNotStarted
from registry.scratch import ScratchFolder
from tests.registry.support import ends

ROOT = Path(__file__).parents[2]


def _port(server: EmbeddedValkey) -> int:
    return int(server.url.rsplit(":", 1)[1].split("/")[0])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _shown_by_system(pid: int, folder: Path) -> bytes:
    """What `ps` and the file system tell of the server."""
    process = Path(f"/proc/{pid}")
    files = [process / "cmdline", process / "environ", *folder.rglob("*")]
    return b"".join(path.read_bytes() for path in files if path.is_file())


def _listening_addresses(port: int) -> list[str]:
    """Hexadecimal, of all that listens on `port`."""
    tables = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    rows = [row.split() for row in tables.splitlines() if " 0A " in row]
    return [row[1].split(":")[0] for row in rows if row[1].endswith(f":{port:04X}")]


async def test_it_leaves_no_process_no_port_no_folder() -> None:
    async with EmbeddedValkey() as server:
        pid, folder, port = server.pid, server.folder, _port(server)
        assert pid is not None
        assert folder is not None
        assert folder.stat().st_mode & 0o777 == 0o700
        assert _listens(port)
        await server.start()  # runs already: nothing happens
        assert server.pid == pid
    assert ends(pid, 0)
    assert not folder.exists()
    assert not _listens(port)
    assert server.pid is None
    with pytest.raises(ServerNotStarted):
        _ = server.url
    await server.stop()  # once more is harmless


async def test_two_at_once_are_strangers() -> None:
    async with EmbeddedValkey() as one, EmbeddedValkey() as two:
        assert _port(one) != _port(two)
        assert one.folder != two.folder
        for server, text in ((one, "one"), (two, "two")):
            registry = connect(server.url, "c")
            assert await registry.deployment() is None
            await registry.put_deployment(text, term=1)
            await registry.close()


async def test_after_a_crash_it_is_back_with_address_and_data() -> None:
    async with EmbeddedValkey() as server:
        url, registry = server.url, connect(server.url, "c")
        await registry.put_deployment("kept", term=1)
        server.kill()
        assert server.pid is None
        await server.start()
        assert server.url == url
        assert await registry.deployment() == "kept"
        await registry.close()


async def test_the_password_shows_in_no_process_list_and_no_file() -> None:
    async with EmbeddedValkey() as server:
        password = server.url.split(":")[2].split("@")[0].encode()
        assert server.folder is not None
        assert server.pid is not None
        shown = _shown_by_system(server.pid, server.folder)
        assert password not in shown


async def test_it_listens_on_loopback_and_asks_for_the_password() -> None:
    async with EmbeddedValkey() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", _port(server))
        writer.write(b"PING\r\n")
        async with asyncio.timeout(5):
            assert (await reader.readline()).startswith(b"-NOAUTH")
        writer.close()
        await writer.wait_closed()
        assert _listening_addresses(_port(server)) == ["0100007F"]


async def test_a_taken_port_is_given_up_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1], home.free_port(embedded.HOST)])
        monkeypatch.setattr(home, "free_port", lambda _: next(ports))
        async with EmbeddedValkey() as server:
            assert _port(server) != taken.getsockname()[1]


def test_ports_of_ray_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert home.free_port(embedded.HOST) not in home.RAY_PORTS
    monkeypatch.setattr(home, "RAY_PORTS", range(32768, 60999, 2))
    assert all(home.free_port(embedded.HOST) not in home.RAY_PORTS for _ in range(20))


FAILURES = [
    # id                     script of a bad server                               error
    ("ends at once", "exit 1", "ended at once"),
    ("never answers", "exec sleep 600", "not ready in 0.5 s"),
    ("never reads", "trap '' TERM; while :; do sleep 600; done", "not ready in 0.5 s"),
]


@pytest.mark.parametrize(
    ("script", "error"), [c[1:] for c in FAILURES], ids=[c[0] for c in FAILURES]
)
async def test_a_failed_start_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, error: str
) -> None:
    binary = tmp_path / "bad-server"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o700)
    monkeypatch.setattr(embedded, "get_binary_path", lambda: binary)
    monkeypatch.setattr(embedded, "STOP_TIMEOUT_S", 0.5)
    monkeypatch.setattr(embedded, "MAX_PORT_ATTEMPTS", 2)
    # Long enough for two launches where an end is awaited, short where nothing ever comes.
    monkeypatch.setattr(embedded, "START_TIMEOUT_S", 10.0 if "at once" in error else 0.5)
    server = EmbeddedValkey()
    with pytest.raises(ServerNotStarted, match=error):
        await server.start()
    assert server.pid is None
    assert server.folder is None


OWNER = """
import asyncio, sys
from registry.embedded import EmbeddedValkey

async def main():
    async with EmbeddedValkey() as server:
        print(server.pid, server.folder, flush=True)
        sys.stdin.read()

asyncio.run(main())
"""


def test_it_dies_with_its_parent_and_the_next_one_clears_its_folder(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        text=True,
    ) as owner:
        try:
            assert owner.stdout is not None
            assert select.select([owner.stdout], [], [], 30)[0]
            pid, folder = owner.stdout.readline().split()
            assert not ends(int(pid), 0)
        finally:
            owner.send_signal(signal.SIGKILL)
        assert ends(int(pid), 10)
    assert Path(folder).exists()  # nobody was left to delete it
    ScratchFolder(embedded.FOLDER_PREFIX, parent=tmp_path).remove()
    assert list(tmp_path.iterdir()) == []


def test_scratch_folders_of_the_living_are_spared(tmp_path: Path) -> None:
    first = ScratchFolder("x-", parent=tmp_path)
    second = ScratchFolder("x-", parent=tmp_path)
    foreign = tmp_path / "x-foreign"
    foreign.mkdir()
    third = ScratchFolder("x-", parent=tmp_path)
    assert first.path.exists()
    assert second.path.exists()
    assert foreign.exists()  # no lock of ours: maybe it is just being made, maybe not ours
    for folder in (first, second, third):
        folder.remove()
        folder.remove()
        assert not folder.path.exists()


def test_links_are_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / scratch.LOCK_NAME).touch()
    (tmp_path / "x-link").symlink_to(precious)
    (tmp_path / "x-trap").mkdir()
    (tmp_path / "x-trap" / scratch.LOCK_NAME).symlink_to(precious / scratch.LOCK_NAME)
    ScratchFolder("x-", parent=tmp_path).remove()
    assert (precious / scratch.LOCK_NAME).exists()
    assert (tmp_path / "x-trap").exists()
