"""Lines of JSON: the fields that a message names, its request, its moment; always one object."""

import json
import logging
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.logs import JsonLines


def document(message: str, *args: object, **fields: object) -> dict[str, Any]:
    record = logging.LogRecord("a.b", logging.INFO, "f.py", 1, message, args, None)
    record.__dict__.update(fields)
    line = JsonLines().format(record)
    assert "\n" not in line
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def named(message: str, *args: object) -> dict[str, Any]:
    common = {"time", "level", "logger", "message"}
    return {k: v for k, v in document(message, *args).items() if k not in common}


CASES = [
    # id                    message                       arguments           fields
    ("none", "drained", (), {}),
    ("text and number", "a x=%s n=%d", ("1", 2), {"x": "1", "n": 2}),
    ("precision", "took_s=%.3g of %d", (0.12345, 7), {"took_s": 0.12345}),
    (
        "nameless before",
        "link %s instance_id=%s was=%s %s",
        ("up", "p0", "new", ""),
        {"instance_id": "p0", "was": "new"},
    ),
    ("percent", "done=%d%% of=%d", (50, 9), {"done": 50, "of": 9}),
    ("repr", "author=%r", ("me",), {"author": "me"}),
    ("an object", "error=%s", (ValueError("bad"),), {"error": "bad"}),
    ("no finite number", "x=%s", (math.inf,), {"x": "inf"}),
    ("yes and none", "x=%s y=%s", (True, None), {"x": True, "y": None}),
    ("request", "x request_id=%s", ("r",), {"request_id": "r"}),
    ("handoff", "x handoff_id=%s", ("a/b/0",), {"handoff_id": "a/b/0", "request_id": "a/b"}),
    ("taken words stay", "level=%s time=%s", ("high", 1), {}),
    ("mapping", "x=%(x)s", ({"x": 1},), {}),
]


@pytest.mark.parametrize(
    ("message", "args", "fields"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_a_message_names_its_fields(
    message: str, args: tuple[object, ...], fields: dict[str, Any]
) -> None:
    assert named(message, *args) == fields


def test_the_message_is_whole_and_the_moment_is_rfc_3339() -> None:
    found = document("placed x=%s", "y", created=1_700_000_000.25)
    assert found["message"] == "placed x=y"
    assert (found["level"], found["logger"]) == ("INFO", "a.b")
    assert found["time"] == "2023-11-14T22:13:20.250000Z"


def test_an_exception_is_a_field() -> None:
    try:
        raise ValueError("bad")
    except ValueError:
        found = document("crashed", exc_info=sys.exc_info())
    assert found["exception"].endswith("ValueError: bad")


VALUES = st.one_of(st.text(), st.floats(), st.binary(), st.dictionaries(st.text(), st.text()))


@given(st.lists(VALUES, max_size=4))
def test_whatever_is_logged_is_one_line_of_json(values: list[object]) -> None:
    found = named(" ".join(f"k{i}=%s" for i in range(len(values))), *values)
    if not (len(values) == 1 and isinstance(values[0], dict)):
        assert list(found) == [f"k{i}" for i in range(len(values))]
