"""A cluster's state as a file: out of one store, into another."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from core.errors import ConfigError
from core.json_tree import loads, tree
from core.settings import MAX_SETTINGS_BYTES, parse_settings
from registry.api import Registry, SharedKeyDamaged, key_from_text, key_to_text
from registry.cluster_state import ClusterState
from registry.deployment import MAX_DEPLOYMENT_BYTES
from registry.editions import MAX_EDITIONS, Edition
from registry.leader import Leader

FORMAT = "baton-state"
SCHEMA = 1
MAX_STATE_BYTES = 2 * (MAX_DEPLOYMENT_BYTES + MAX_EDITIONS * MAX_SETTINGS_BYTES) + 64 * 1024
"""JSON escapes at most double the text of a sane document."""


class InvalidStateFile(ConfigError):
    """Not a cluster's state, or one that cannot be restored; lists every problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _StateFile:
    """A ClusterState, as JSON has it."""

    format: str = FORMAT
    schema: int = SCHEMA
    deployment: str | None
    settings_version: int
    settings: tuple[Edition, ...]
    shared_key: str | None = field(repr=False)
    last_leader: Leader | None


async def export_state(registry: Registry) -> str:
    """All that does not expire, as JSON text. It holds the cluster's key: keep it secret.

    Raises InvalidStateFile where the store holds what could not be imported.
    """
    state = await registry.state()
    text = state_to_json(state)
    _refuse((*state.problems(), *_size_problems(text)))
    return text


async def import_state(registry: Registry, text: str, *, replace: bool = False) -> ClusterState:
    """Put what `export_state` gave; nothing is written unless all of it can be.

    Raises InvalidStateFile, and ClusterNotEmpty unless it is to `replace` what is there.
    """
    state = state_from_json(text)
    await registry.restore(state, replace=replace)
    return state


def state_to_json(state: ClusterState) -> str:
    """Indented; equal states give equal text."""
    file = _StateFile(
        deployment=state.deployment,
        settings_version=state.settings_version,
        settings=state.editions,
        shared_key=key_to_text(state.shared_key) if state.shared_key is not None else None,
        last_leader=state.last_leader,
    )
    return json.dumps(asdict(file), indent=2, ensure_ascii=False) + "\n"


def state_from_json(text: str) -> ClusterState:
    """Trusts none of it. Raises InvalidStateFile, and nothing else."""
    _refuse(tuple(_size_problems(text)))
    try:
        state = _state(_file(_parse(text)))
    except (SharedKeyDamaged, OverflowError) as error:
        raise InvalidStateFile((str(error),)) from None
    except ConfigError as error:
        raise InvalidStateFile(error.problems) from None
    _refuse((*state.problems(), *_newest_problems(state)))
    return state


def _refuse(problems: tuple[str, ...]) -> None:
    if problems:
        raise InvalidStateFile(problems)


def _size_problems(text: str) -> Iterator[str]:
    # Characters first: encoding must not allocate for a text that is too long anyway.
    if len(text) > MAX_STATE_BYTES or len(text.encode(errors="replace")) > MAX_STATE_BYTES:
        yield f"state of more than {MAX_STATE_BYTES} bytes"


def _parse(text: str) -> dict[str, object]:
    try:
        document = loads(text)
        # An escape may name half a character, which no store could keep.
        json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise InvalidStateFile(("state is not JSON",)) from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InvalidStateFile((f'not a state file: "format" must be "{FORMAT}"',))
    # Before the rest: another schema may have other keys.
    if document.get("schema") != SCHEMA:
        schema = document.get("schema")
        raise InvalidStateFile((f"schema {schema!r:.64}, this version of Baton reads {SCHEMA}",))
    return document


def _file(document: dict[str, object]) -> _StateFile:
    problems: list[str] = []
    made = tree(_StateFile, document, "state", problems)
    _refuse(tuple(problems))
    assert isinstance(made, _StateFile)
    return made


def _newest_problems(state: ClusterState) -> tuple[str, ...]:
    """Of the settings to be in force; older ones are history, perhaps of another version."""
    for edition in state.editions[-1:]:
        try:
            parse_settings(edition.text, f"edition {edition.version}")
        except ConfigError as error:
            return error.problems
    return ()


def _state(file: _StateFile) -> ClusterState:
    return ClusterState(
        deployment=file.deployment or None,
        settings_version=file.settings_version,
        editions=file.settings,
        shared_key=key_from_text(file.shared_key) if file.shared_key is not None else None,
        last_leader=file.last_leader,
    )
