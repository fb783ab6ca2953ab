"""Failpoints do what their text says, at the hit it says, and nothing anywhere else."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.failpoints import BYTE_ACTIONS, FLOW_ACTIONS, PLACES, FailpointHit, Failpoints

ROOT = Path(__file__).parents[2]
DATA = b"\x00\x01\x02\x03"

PASSING = [
    # id                    text                                     want at hits 1, 2, 3
    ("nothing planted", "", [(DATA,)] * 3),
    ("planted elsewhere", "kv.receive.segment=drop", [(DATA,)] * 3),
    ("the last byte", "kv.send.frame=flip", [(b"\x00\x01\x02\x02",)] * 3),
    ("the first byte", "kv.send.frame=flip:0@2", [(DATA,), (b"\x01\x01\x02\x03",), (DATA,)]),
    ("a byte that is not there", "kv.send.frame=flip:4", [(DATA,)] * 3),
    ("all but the last byte", "kv.send.frame=truncate@1", [(DATA[:3],), (DATA,), (DATA,)]),
    ("one byte", "kv.send.frame=truncate:1", [(DATA[:1],)] * 3),
    ("twice", "kv.send.frame=duplicate@3", [(DATA,), (DATA,), (DATA, DATA)]),
    ("never", "kv.send.frame=drop@2", [(DATA,), (), (DATA,)]),
    ("two faults", "kv.send.frame=drop@2, kv.send.frame=duplicate", [(DATA,) * 2, (), (DATA,) * 2]),
    ("the other kind", "kv.send.frame=error", [(DATA,)] * 3),
]


@pytest.mark.parametrize(("text", "want"), [c[1:] for c in PASSING], ids=[c[0] for c in PASSING])
def test_pass_bytes(text: str, want: list[tuple[bytes, ...]]) -> None:
    failpoints = Failpoints.parse(text)
    assert [tuple(failpoints.pass_bytes("kv.send.frame", DATA)) for _ in want] == want


ERRORS = [
    # id              text                                   which of 4 hits raise
    ("nothing", "", []),
    ("every one", "kv.commit=error", [1, 2, 3, 4]),
    ("the second", "kv.commit=error@2", [2]),
    ("two of them", "kv.commit=error@1,kv.commit=error@4", [1, 4]),
    ("elsewhere", "kv.open=error", []),
    ("after a delay", "kv.commit=delay:0,kv.commit=error@3", [3]),
]


@pytest.mark.parametrize(("text", "want"), [c[1:] for c in ERRORS], ids=[c[0] for c in ERRORS])
async def test_error(text: str, want: list[int]) -> None:
    failpoints, raised = Failpoints.parse(text), []
    for hit in (1, 2, 3, 4):
        try:
            await failpoints.hit("kv.commit")
        except FailpointHit as error:
            raised.append((hit, error.status, str(error)))
    assert raised == [(hit, "INTERNAL", "failpoint kv.commit") for hit in want]


async def test_bytes_and_flow_count_their_own_hits() -> None:
    failpoints = Failpoints.parse("kv.send.frame=error@2,kv.send.frame=drop@2")
    await failpoints.hit("kv.send.frame")
    assert failpoints.pass_bytes("kv.send.frame", DATA) == (DATA,)
    with pytest.raises(FailpointHit):
        await failpoints.hit("kv.send.frame")
    assert failpoints.pass_bytes("kv.send.frame", DATA) == ()


async def test_two_objects_count_apart() -> None:
    one, other = (Failpoints.parse("kv.open=error@2") for _ in range(2))
    for failpoints in (one, other):
        await failpoints.hit("kv.open")
    with pytest.raises(FailpointHit):
        await one.hit("kv.open")


async def test_a_stall_lasts_until_it_is_cancelled() -> None:
    async with asyncio.TaskGroup() as group:
        stalling = group.create_task(Failpoints.parse("kv.open=stall").hit("kv.open"))
        await asyncio.sleep(0)
        assert not stalling.done()
        stalling.cancel()
    assert stalling.cancelled()


def test_kill() -> None:
    """Nothing that Python would still do at its end is done."""
    code = (
        "import asyncio, atexit; from core.failpoints import Failpoints\n"
        "atexit.register(print, 'at exit')\n"
        "async def main():\n"
        "    failpoints = Failpoints.parse('kv.release=kill@2')\n"
        "    await failpoints.hit('kv.release'); print('once', flush=True)\n"
        "    try: await failpoints.hit('kv.release')\n"
        "    finally: print('finally', flush=True)\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, b"once\n")


WRONG = [
    # id                    text                          what the problem names
    ("no action", "kv.open", "place=action[:argument][@which hit]"),
    ("an empty action", "kv.open=", "place=action[:argument][@which hit]"),
    ("an unknown place", "kv.opne=error", "kv.open, kv.announce"),
    ("an unknown action", "kv.open=explode", "kill, error, stall, delay, flip, truncate"),
    ("an action with a space", "kv.open= kill", "kill, error, stall, delay, flip, truncate"),
    ("bytes where none pass", "kv.open=flip", "kv.send.frame, kv.receive.segment"),
    ("a delay of nothing", "kv.open=delay", "delay:0.2"),
    ("a delay without a number", "kv.open=delay:", "delay:0.2"),
    ("a delay that is no number", "kv.open=delay:nan", "delay:0.2"),
    ("a delay without end", "kv.open=delay:inf", "delay:0.2"),
    ("a delay into the past", "kv.open=delay:-1", "delay:0.2"),
    ("an argument too many", "kv.open=kill:9", "kill takes no argument"),
    ("half a byte", "kv.send.frame=flip:0.5", "whole number of bytes"),
    ("hit nought", "kv.open=kill@0", "from 1"),
    ("no hit", "kv.open=kill@", "from 1"),
    ("hit one and a half", "kv.open=kill@1.5", "from 1"),
    ("another script's digit", "kv.open=kill@٣", "from 1"),
]


@pytest.mark.parametrize(("text", "named"), [c[1:] for c in WRONG], ids=[c[0] for c in WRONG])
def test_bad_text_is_refused(text: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Failpoints.parse(text)
    (problem,) = caught.value.problems
    assert repr(text) in problem
    assert named in problem


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Failpoints.parse("kv.open=kill@0,kv.open=error,x=error")
    assert len(caught.value.problems) == 2


@given(st.text(alphabet="kv.opensdframe=:@,0123456789-tuclip "))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """Nothing but ConfigError gets out."""
    try:
        Failpoints.parse(text)
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - either end is right


@given(
    place=st.sampled_from([name for name, carries in PLACES.items() if carries]),
    action=st.sampled_from(sorted(BYTE_ACTIONS)),
    nth=st.integers(1, 5),
    chunks=st.lists(st.binary(max_size=8), max_size=5),
)
def test_all_hits_but_the_nth_pass_unchanged(
    place: str, action: str, nth: int, chunks: list[bytes]
) -> None:
    failpoints = Failpoints.parse(f"{place}={action}@{nth}")
    for hit, chunk in enumerate(chunks, 1):
        passed = tuple(failpoints.pass_bytes(place, chunk))
        assert passed == (chunk,) or hit == nth


def test_the_actions_have_different_names() -> None:
    assert not set(FLOW_ACTIONS) & set(BYTE_ACTIONS)
