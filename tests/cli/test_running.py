"""Notes of clusters: found, replaced, forgotten; whatever a file holds, an error is typed."""

import json
import os
import stat
from pathlib import Path

import pytest

from cli import running
from cli.running import ClusterNote, NoCluster, NoteDamaged
from core.errors import BatonError, ConfigError

URL = "redis://:s3cret@10.0.0.1:6379"


def note(name: str = "one", **given: object) -> ClusterNote:
    fields = {"routers": ("127.0.0.1:1",), "http": ("127.0.0.1:2",), "registry_url": URL, **given}
    return ClusterNote(name=name, **fields)  # type: ignore[arg-type]


def age_s(path: Path, seconds: int) -> None:
    os.utime(path, (1_000_000 - seconds, 1_000_000 - seconds))


def test_what_is_written_is_read() -> None:
    written = note(home="/somewhere/ray", ray_address="127.0.0.1:6379")
    running.write_note(written)
    assert running.read_note() == running.read_note("one") == written
    assert running.find_registry() == running.find_registry("one") == (URL, "one")


def test_the_last_one_is_meant_and_any_can_be_named() -> None:
    age_s(running.write_note(note("first", routers=("127.0.0.1:3",))), 20)
    age_s(running.write_note(note("second")), 10)
    assert running.find_routers(None) == ("127.0.0.1:1",)
    assert running.find_routers(None, "first") == ("127.0.0.1:3",)
    running.forget_note("second")
    running.forget_note("second")
    assert running.read_note().name == "first"
    with pytest.raises(NoCluster, match="'second' is known here; there is first"):
        running.read_note("second")


def test_a_note_is_its_users_alone_and_never_half_written(own_state: Path) -> None:
    path = running.write_note(note())
    running.write_note(note(home="/else"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [p.name for p in (own_state / "running").iterdir()] == ["one.json"]


def test_a_failed_write_leaves_the_old_note(monkeypatch: pytest.MonkeyPatch) -> None:
    path = running.write_note(note())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(OSError, match="no space"):
        running.write_note(note(home="/else"))
    assert running.read_note() == note()
    assert list(path.parent.iterdir()) == [path]


def test_the_registrys_password_is_not_shown() -> None:
    assert "s3cret" not in repr(note())


@pytest.mark.parametrize("name", ["", "..", "../one", "a/b", ".hidden", "x" * 65])
def test_no_name_leaves_the_folder(name: str) -> None:
    with pytest.raises(ConfigError):
        running.write_note(note(name))
    with pytest.raises(NoCluster):
        running.read_note(name)


DAMAGED = [
    # id, text, named
    ("empty", b"", "not JSON"),
    ("no JSON", b"{", "not JSON"),
    ("binary", b"\xff\x00", "not JSON"),
    ("deep", b"[" * 30_000, "not JSON"),
    ("long", b" " * 70_000, "65536 bytes"),
    ("a list", b"[]", "note must be ClusterNote"),
    ("of an older version", b'{"routers": ["h:1"], "http": []}', "name"),
    ("of a newer version", b'{"name": "one", "routers": [], "http": [], "x": 1}', "'x'"),
    ("wrong type", b'{"name": "one", "routers": "h:1", "http": []}', "note.routers"),
    ("wrong item", b'{"name": "one", "routers": [1], "http": []}', "note.routers[0]"),
    ("no address", b'{"name": "one", "routers": ["s3cret"], "http": []}', "routers[0]"),
    ("another's", b'{"name": "two", "routers": [], "http": []}', "'two'"),
]


@pytest.mark.parametrize(("text", "named"), [c[1:] for c in DAMAGED], ids=[c[0] for c in DAMAGED])
def test_a_damaged_note_is_an_error_that_names_the_file(text: bytes, named: str) -> None:
    path = running.write_note(note())
    path.write_bytes(text)
    for read in (running.read_note, lambda: running.find_routers(None), running.find_registry):
        with pytest.raises(NoteDamaged) as caught:
            read()
        assert named in str(caught.value)
        assert str(path) in str(caught.value)
        assert "s3cret" not in str(caught.value)


def test_a_folder_in_a_notes_place_is_an_error_too(own_state: Path) -> None:
    (own_state / "running" / "one.json").mkdir(parents=True)
    with pytest.raises(NoteDamaged, match="cannot read"):
        running.read_note()


MISSING = [
    ("no cluster", None, lambda: running.read_note(), "baton up"),
    ("no router yet", note(routers=()), lambda: running.find_routers(None), "--address"),
    ("no API yet", note(http=()), lambda: running.find_http(None), "--address"),
    ("of serve", note(registry_url=""), lambda: running.find_registry(), "`baton serve`"),
]


@pytest.mark.parametrize(
    ("there", "find", "named"), [c[1:] for c in MISSING], ids=[c[0] for c in MISSING]
)
def test_what_is_missing_is_said(there: ClusterNote | None, find: object, named: str) -> None:
    if there is not None:
        running.write_note(there)
    with pytest.raises(NoCluster) as caught:
        find()  # type: ignore[operator]
    assert named in str(caught.value)
    assert isinstance(caught.value, BatonError)


def test_a_served_cluster_never_takes_the_note_of_one_with_a_registry(
    caplog: pytest.LogCaptureFixture,
) -> None:
    running.write_note(note())
    with running.announced("one", ("127.0.0.1:8",), ("127.0.0.1:9",)):
        assert running.read_note() == note()
        assert "other commands will need --address" in caplog.text
    assert running.read_note() == note()


def test_a_served_cluster_forgets_only_its_own_note() -> None:
    with running.announced("one", ("127.0.0.1:8",), ("127.0.0.1:9",)):
        running.write_note(note())
    assert running.read_note() == note()


def test_a_served_cluster_may_end_with_a_damaged_note() -> None:
    with running.announced("one", ("127.0.0.1:8",), ("127.0.0.1:9",)) as path:
        path.write_text("{")
    assert path.exists()


async def test_an_address_needs_no_note() -> None:
    assert await running.routers_now("10.0.0.1:1") == ("10.0.0.1:1",)
    assert await running.http_now("10.0.0.1:1") == ("10.0.0.1:1",)
