"""A state file is checked whole before anything is written."""

import dataclasses
import json
from typing import Any

import pytest

from core.settings import MAX_SETTINGS_BYTES
from registry import state
from registry.cluster_state import MAX_VERSION, ClusterState
from registry.deployment import MAX_DEPLOYMENT_BYTES
from registry.editions import MAX_EDITIONS, Edition
from registry.leader import MAX_TERM, Leader
from registry.memory import MemoryRegistry
from registry.state import (
    MAX_STATE_BYTES,
    InvalidStateFile,
    export_state,
    import_state,
    state_from_json,
    state_to_json,
)


def edition(version: int, **changes: Any) -> Edition:
    plain = Edition(version=version, at_s=1.5, author="a", restores=0, text="")
    return dataclasses.replace(plain, **changes)


GOOD = ClusterState(
    deployment="[model]\n",
    settings_version=7,
    editions=(edition(5, author="Zoë", text="# \x00\u2028\n"), edition(7, at_s=2.0)),
    shared_key=bytes(range(32)),
    last_leader=Leader(term=9, holder="controller-a", address="h:1"),
)
EDITION = json.loads(state_to_json(GOOD))["settings"][0]


def changed(**changes: Any) -> str:
    """GOOD as a file, with other fields."""
    return json.dumps(json.loads(state_to_json(GOOD)) | changes)


def settings(*editions: dict[str, Any]) -> str:
    return changed(settings=[EDITION | each for each in editions])


def without(name: str) -> str:
    document = json.loads(state_to_json(GOOD))
    del document[name]
    return json.dumps(document)


BAD = [
    # id, file, what is told
    ("empty", "", "not JSON"),
    ("cut", state_to_json(GOOD)[:-3], "not JSON"),
    ("deep", "[" * 100_000, "not JSON"),
    ("no object", "[]", "not a state file"),
    ("another format", changed(format="other"), "not a state file"),
    ("no format", without("format"), "not a state file"),
    ("another schema", changed(schema=2), "schema 2, this version of Baton reads 1"),
    ("no schema", without("schema"), "schema None"),
    ("an unknown key", changed(extra=1), "unknown key 'extra'"),
    ("a missing key", without("shared_key"), "shared_key"),
    ("no number", changed(settings_version="7"), "settings_version must be int, got str"),
    ("a truth", changed(settings_version=True), "settings_version must be int, got bool"),
    ("no text", changed(deployment=7), "deployment must be str, got int"),
    ("no list", changed(settings={}), "settings must be"),
    ("half a character", changed(deployment="\ud800"), "not JSON"),
    ("NaN", changed(settings_version=float("nan")), "not JSON"),
    ("a long deployment", changed(deployment="é" * 600_000), f"limit {MAX_DEPLOYMENT_BYTES}"),
    ("a short key", changed(shared_key="ab"), "64 hexadecimal digits"),
    ("an odd key", changed(shared_key="canary--" * 8), "64 hexadecimal digits"),
    ("a negative version", changed(settings_version=-1, settings=[]), "must be 0 to"),
    ("a large version", changed(settings_version=MAX_VERSION + 1), f"must be 0 to {MAX_VERSION}"),
    ("a leader without address", changed(last_leader={"term": 1, "holder": "a"}), "address"),
    ("a leader of an odd name", changed(last_leader={**EDITION}), "unknown key 'at_s'"),
    (
        "a term past its bound",
        changed(last_leader={"term": MAX_TERM + 1, "holder": "a", "address": "h:1"}),
        "term must be 1 to",
    ),
    (
        "a name that breaks a record",
        changed(last_leader={"term": 1, "holder": "a b", "address": "h:1"}),
        "holder must be",
    ),
    ("no edition", changed(settings=[7]), r"settings\[0\] must be Edition"),
    ("an edition's unknown key", settings({"x": 1}), r"settings\[0\]: unknown key 'x'"),
    ("editions that shrink", settings({"version": 6}, {"version": 5}), "of growing versions"),
    ("an edition twice", settings({"version": 6}, {"version": 6}), "of growing versions"),
    ("edition 0", settings({"version": 0}), "of growing versions"),
    ("an edition of the future", settings({"version": 8}), "of growing versions"),
    ("a long author", settings({"author": "a" * 129}), "edition 5: author of 129"),
    ("long settings", settings({"text": "x" * (MAX_SETTINGS_BYTES + 1)}), "edition 5: settings"),
    ("restores nothing", settings({"restores": -1}), "restores must be 0 to"),
    ("before all time", settings({"at_s": -1}), "at_s must be"),
    ("after all time", settings({"at_s": 1e300}), "at_s must be"),
    ("after all numbers", settings({"at_s": 10**400}), "too large"),
    ("the newest is no TOML", settings({"text": "="}), "edition 5"),
    ("the newest is of another version", settings({"text": "new_key = 1\n"}), "new_key"),
    (
        "too many editions",
        settings(*({"version": i + 1} for i in range(MAX_EDITIONS + 1))).replace(
            '"settings_version": 7', '"settings_version": 99'
        ),
        f"{MAX_EDITIONS + 1} editions, limit {MAX_EDITIONS}",
    ),
]


@pytest.mark.parametrize(("text", "told"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
async def test_a_bad_file_is_told_and_nothing_is_written(text: str, told: str) -> None:
    registry = MemoryRegistry()
    with pytest.raises(InvalidStateFile, match=told) as refused:
        await import_state(registry, text, replace=True)
    assert len(str(refused.value)) < 10_000
    assert "canary" not in str(refused.value)
    assert await registry.state() == ClusterState()


async def test_a_file_past_its_bound_is_not_even_parsed() -> None:
    with pytest.raises(InvalidStateFile, match=f"more than {MAX_STATE_BYTES} bytes"):
        state_from_json(" " * (MAX_STATE_BYTES + 1))


async def test_all_problems_are_told_at_once() -> None:
    bad = settings({"author": "a" * 129, "at_s": -1, "version": 9, "text": "="})
    with pytest.raises(InvalidStateFile) as refused:
        state_from_json(bad)
    assert len(refused.value.problems) == 4


@pytest.mark.parametrize(
    "good",
    [GOOD, ClusterState(), ClusterState(settings_version=3), ClusterState(shared_key=bytes(32))],
    ids=["all", "nothing", "settings damaged", "a key only"],
)
def test_a_good_one_goes_there_and_back(good: ClusterState) -> None:
    text = state_to_json(good)
    assert state_from_json(text) == good
    assert state_to_json(state_from_json(text)) == text


def test_the_largest_one_fits() -> None:
    editions = tuple(
        edition(i + 1, text="#" + "x" * (MAX_SETTINGS_BYTES - 1)) for i in range(MAX_EDITIONS)
    )
    largest = ClusterState(
        deployment='"' * MAX_DEPLOYMENT_BYTES, settings_version=MAX_EDITIONS, editions=editions
    )
    assert state_from_json(state_to_json(largest)) == largest


async def test_what_could_not_be_imported_is_not_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = MemoryRegistry()
    registry.store.deployment = "x" * (MAX_DEPLOYMENT_BYTES + 1)
    with pytest.raises(InvalidStateFile, match="deployment of"):
        await export_state(registry)
    registry.store.deployment = "x" * 1000
    monkeypatch.setattr(state, "MAX_STATE_BYTES", 1000)
    with pytest.raises(InvalidStateFile, match="more than 1000 bytes"):
        await export_state(registry)


def test_the_key_shows_in_no_repr() -> None:
    key = bytes(range(32))
    assert key.hex() not in repr(GOOD)
    assert repr(key) not in repr(GOOD)
