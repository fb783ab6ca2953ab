"""Which clusters this user runs, so that commands find one without an address."""

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from core.errors import BatonError
from core.json_tree import loads, tree
from core.member import is_address
from core.paths import user_state_dir
from registry.keys import Keys

logger = logging.getLogger(__name__)

MAX_NOTE_BYTES = 64 * 1024
"""A thousand routers' addresses and the rest."""
START = "start one with `baton up plan.toml` or `baton serve`"


class NoCluster(BatonError):
    """Nothing to talk to."""

    status = "UNAVAILABLE"


class NobodyAnswers(BatonError):
    """A cluster is known, and neither its controller nor a router can be reached."""

    status = "UNAVAILABLE"

    def __init__(self, whys: Iterable[str]) -> None:
        why = "; ".join(filter(None, whys))
        super().__init__(f"{why or 'no router serves yet'}; if the cluster has ended, {START}")


class NoteDamaged(BatonError):
    """What is kept about a cluster cannot be read, or is of another version of this program."""

    status = "FAILED_PRECONDITION"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterNote:
    """Where a cluster is; one file per cluster, readable by its user alone."""

    name: str
    routers: tuple[str, ...]
    """host:port of gRPC."""
    http: tuple[str, ...]
    """host:port of OpenAI's API."""
    registry_url: str = field(default="", repr=False)
    """May hold a password: never shown. Empty: `baton serve` runs it, without a controller."""
    home: str = ""
    """Folder of a local Ray; empty: there is none."""
    ray_address: str = ""


@contextmanager
def announced(
    name: str, router_addresses: tuple[str, ...], http_addresses: tuple[str, ...]
) -> Iterator[Path]:
    """Note a running cluster until the block ends; where that cannot be, it runs all the same."""
    path, note = _path(name), ClusterNote(name=name, routers=router_addresses, http=http_addresses)
    noted = _note_if_free(path, note)
    try:
        yield path
    finally:
        # Another cluster may have taken the name meanwhile.
        with suppress(NoCluster, NoteDamaged):
            if noted and _read(path) == note:
                forget_note(name)


def _note_if_free(path: Path, note: ClusterNote) -> bool:
    try:
        # With its note a cluster of `baton up` would lose the way to its registry.
        if path.exists() and _read(path).registry_url:
            logger.warning("other commands will need --address: %s is another's name", note.name)
            return False
        write_note(note)
    except (OSError, NoteDamaged) as error:
        logger.warning("other commands will need --address: cannot write %s: %s", path, error)
        return False
    return True


def write_note(note: ClusterNote) -> Path:
    """Keep it, in place of the one of that name. Raises OSError, and ConfigError for its name."""
    path = _path(note.name)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # mkstemp's files are their user's alone, from the first moment.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{note.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(note), file, indent=2)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def read_note(name: str | None = None) -> ClusterNote:
    """That of a cluster; None: of the one noted last. Raises NoCluster and NoteDamaged."""
    paths = _paths()
    if not paths:
        raise NoCluster(f"no running cluster: {START}, or give --address")
    if name is None:
        return _read(paths[-1])
    by_name = {path.stem: path for path in paths}
    if name not in by_name:
        raise NoCluster(f"no cluster {name!r} is known here; there is {', '.join(sorted(by_name))}")
    return _read(by_name[name])


def forget_note(name: str) -> None:
    """The cluster has ended; nothing happens when it is forgotten already."""
    with suppress(OSError):
        _path(name).unlink(missing_ok=True)


def find_routers(address: str | None, name: str | None = None) -> tuple[str, ...]:
    """gRPC: the given address, or those of a cluster, by default of the one noted last; never
    none. Raises NoCluster and NoteDamaged."""
    if address:
        return (address,)
    note = read_note(name)
    return _some(note.routers, note.name)


def find_http(address: str | None, name: str | None = None) -> tuple[str, ...]:
    """The same, of OpenAI's API."""
    if address:
        return (address,)
    note = read_note(name)
    return _some(note.http, note.name)


async def routers_now(address: str | None, name: str | None = None) -> tuple[str, ...]:
    """As `find_routers`; where the cluster has a registry, those that live now: routers come and
    go, and the note is of when it was started."""
    if address or not read_note(name).registry_url:
        return find_routers(address, name)
    from cli.controller import living_routers

    return await living_routers(name)


async def http_now(address: str | None, name: str | None = None) -> tuple[str, ...]:
    """The same, of OpenAI's API."""
    if address or not read_note(name).registry_url:
        return find_http(address, name)
    from cli.controller import living_http

    return await living_http(name)


def find_registry(name: str | None = None) -> tuple[str, str]:
    """URL of a cluster's registry, and the cluster's name. Raises NoCluster and NoteDamaged."""
    note = read_note(name)
    if not note.registry_url:
        raise NoCluster(
            f"cluster {note.name} has no controller, because it was started by `baton serve`:"
            " `baton up` starts one that has"
        )
    return note.registry_url, note.name


def _some(addresses: tuple[str, ...], name: str) -> tuple[str, ...]:
    if not addresses:
        raise NoCluster(f"cluster {name} had no router yet when it was noted: give --address")
    return addresses


def _read(path: Path) -> ClusterNote:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_NOTE_BYTES + 1)
    except FileNotFoundError:
        raise NoCluster(f"cluster {path.stem} has just ended: {START}") from None
    except OSError as error:
        raise NoteDamaged(f"cannot read {path}: {error.strerror}") from None
    problems: list[str] = []
    note = _parse(text, problems)
    if isinstance(note, ClusterNote) and not problems:
        problems += _problems(note, path.stem)
    if problems or not isinstance(note, ClusterNote):
        what = "; ".join(problems) or "not a JSON object"
        raise NoteDamaged(f"{path}: {what}; remove the file, and give --address")
    return note


def _parse(text: bytes, problems: list[str]) -> object:
    if len(text) > MAX_NOTE_BYTES:
        problems.append(f"more than {MAX_NOTE_BYTES} bytes")
        return None
    try:
        return tree(ClusterNote, loads(text.decode()), "note", problems)
    except (ValueError, RecursionError):
        problems.append("not JSON")
        return None


def _problems(note: ClusterNote, name: str) -> Iterator[str]:
    if note.name != name:
        yield f"is of cluster {note.name!r}"
    for kind, addresses in (("routers", note.routers), ("http", note.http)):
        # Never quoted: whatever is in a wrong place may be a password.
        yield from (
            f"{kind}[{i}] is not host:port" for i, a in enumerate(addresses) if not is_address(a)
        )


def _paths() -> list[Path]:
    """In the order in which they were written."""
    found = []
    for path in _folder().glob("[!.]*.json"):
        with suppress(FileNotFoundError):  # its cluster has just ended
            found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found)]


def _path(name: str) -> Path:
    Keys(name)  # the one rule about names of clusters, and none that leaves the folder passes it
    return _folder() / f"{name}.json"


def _folder() -> Path:
    return user_state_dir() / "running"
