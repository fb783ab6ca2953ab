"""What a controller leaves for the next one."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from deploy.controller.deployment import Deployment
from deploy.controller.record import Doors, Record, RecordFile, newest
from tests.deploy.controller.test_deployment import DEPLOYMENTS, FIRST

RECORDS = st.builds(
    Record,
    edition=st.integers(1, 2**63),
    deployment=DEPLOYMENTS,
    doors=st.dictionaries(
        st.sampled_from(["router-0", "router-1"]),
        st.builds(
            Doors, host=st.text(max_size=9), port=st.integers(1, 65_535), http_port=st.just(1)
        ),
    ),
)
ONE = Record(edition=1, deployment=FIRST, doors={})


@given(RECORDS)
def test_it_is_read_as_it_was_written(record: Record) -> None:
    assert Record.from_json(record.to_json()) == record


def changed(**parts: object) -> str:
    return json.dumps(json.loads(ONE.to_json()) | parts)


BAD = [
    ("empty", ""),
    ("cut off", ONE.to_json()[:-10]),
    ("a list", "[]"),
    ("nothing in it", "{}"),
    ("an edition that is none", changed(edition="x")),
    ("an edition beyond all numbers", changed(edition="x").replace('"x"', "1e999")),
    ("doors that are a list", changed(doors=[])),
    ("half a door", changed(doors={"router-0": ["a", 1]})),
    ("a port that is none", changed(doors={"router-0": ["a", "x", 1]})),
    ("a deployment of tomorrow", changed(deployment={"schema": 2})),
    ("too deep", "[" * 100_000),
]  # fmt: skip


@pytest.mark.parametrize("text", [c[1] for c in BAD], ids=[c[0] for c in BAD])
def test_what_cannot_be_read_is_a_typed_error_and_counts_as_none(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Record.from_json(text)
    assert all(caught.value.problems)
    assert newest((text, ONE.to_json())) == ONE


def edition(number: int) -> Record:
    return Record(edition=number, deployment=Deployment(plan_toml=FIRST.plan_toml))


NEWEST = [
    ("nobody has one", (None, None), None),
    ("the registry came back empty", (None, edition(3).to_json()), edition(3)),
    ("the disk is behind", (edition(4).to_json(), edition(3).to_json()), edition(4)),
    ("the registry is behind", (edition(2).to_json(), edition(3).to_json()), edition(3)),
    ("both are torn", ("{", ""), None),
]


@pytest.mark.parametrize(("texts", "want"), [c[1:] for c in NEWEST], ids=[c[0] for c in NEWEST])
def test_newest(texts: tuple[str | None, ...], want: Record | None) -> None:
    assert newest(texts) == want


def test_the_file_holds_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "baton" / "mine.json"
    file = RecordFile(path)
    assert file.read() is None
    file.remove()
    for number in (1, 2):
        file.write(edition(number).to_json())
    assert newest((file.read(),)) == edition(2)
    # A plan may name what is nobody else's business.
    assert path.stat().st_mode & 0o077 == 0
    assert list(path.parent.iterdir()) == [path]
    file.remove()
    assert file.read() is None


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(b"\xff\xfe{")
    assert newest((RecordFile(path).read(),)) is None
