"""Nothing of this user's clusters is seen or touched, and a fake one is there to be asked."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from cli import controller, running
from cli.running import ClusterNote, write_note
from deploy.actors import ServiceThread
from registry.memory import MemoryRegistry, MemoryStore
from tests.cli.fake_cluster import Script, serve


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this test's notes."""
    folder = tmp_path / "state"
    monkeypatch.setattr(running, "user_state_dir", lambda: folder)
    return folder


@dataclass(frozen=True)
class FakeCluster:
    """One of `baton up`, as far as commands can tell."""

    script: Script
    store: MemoryStore
    address: str
    """Of its controller and of its router."""


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """What every registry's URL leads to."""
    store = MemoryStore()
    monkeypatch.setattr(controller, "connect", lambda url, cluster: MemoryRegistry(store))
    return store


@pytest.fixture
def cluster(store: MemoryStore) -> Iterator[FakeCluster]:
    """Noted, with a controller that leads and a router, at one address."""
    script = Script()
    thread = ServiceThread(partial(serve, script), "fake cluster")
    address = thread.address()
    note_up("one", address)
    asyncio.run(MemoryRegistry(store).lead("controller-a", address, term=None, ttl_s=60.0))
    yield FakeCluster(script, store, address)
    assert thread.stop(10.0)


def note_up(name: str, router: str) -> None:
    """As `baton up` does."""
    url = "redis://:s3cret@127.0.0.1:1"
    write_note(ClusterNote(name=name, routers=(router,), http=(), registry_url=url))
