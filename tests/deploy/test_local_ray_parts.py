"""What keeps a background Ray, without a Ray: its files, its guard's patience, its processes."""

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.local_ray.background import RayNotStarted, running_local_ray, start_local_ray
from deploy.local_ray.door import (
    DOOR,
    LOCK,
    FolderLock,
    Holder,
    RayDoor,
    is_held,
    read_door,
    read_holder,
    take_folder,
)
from deploy.local_ray.guard import MAX_PAUSE_S, MAX_RESTARTS, WINDOW_S, RayLost, Restarts
from deploy.local_ray.processes import end_session, exists, first_ended, session_of
from deploy.local_ray.remains import clear_remains
from deploy.ray_runtime import GCS_PATIENCE_S

DOOR_1 = RayDoor(address="127.0.0.2:1234", token="secret")
TIMEOUT_S = 30.0
FOR_EVER = "import signal; print(flush=True); signal.pause()"


def take(folder: Path) -> FolderLock:
    lock = take_folder(folder)
    assert lock is not None
    return lock


def test_one_holds_a_folder_and_leaves_nothing(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    lock = take(tmp_path)
    assert is_held(tmp_path)
    assert take_folder(tmp_path) is None
    lock.remove()
    assert list(tmp_path.iterdir()) == []
    # The old lock is still held, but no longer where anybody looks.
    take(tmp_path).remove()


def test_the_door_is_for_this_user_and_hides_its_token(tmp_path: Path) -> None:
    holder = Holder(pid=os.getpid(), scratch=tmp_path / "scratch")
    lock = take(tmp_path)
    assert read_holder(tmp_path) is None
    lock.say(holder)
    assert read_holder(tmp_path) == holder
    assert running_local_ray(tmp_path) is None
    lock.open_door(DOOR_1, holder.pid)
    assert running_local_ray(tmp_path) == DOOR_1
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in (DOOR, LOCK)] == [0o600] * 2
    assert "secret" not in repr(DOOR_1)
    lock.remove()
    assert running_local_ray(tmp_path) is None


def test_a_door_of_a_holder_before_is_none(tmp_path: Path) -> None:
    lock = take(tmp_path)
    lock.open_door(DOOR_1, pid=1)
    assert read_door(tmp_path, Holder(pid=2, scratch=tmp_path)) is None


CASES = [
    # id                        died at (s)               last pause_s
    ("first, at once", (0.0,), 0.0),
    ("second", (0.0, 1.0), 0.1),
    ("doubles", (0.0, 1.0, 2.0, 3.0), 0.4),
    ("long ago is forgotten", (0.0, WINDOW_S), 0.0),
    ("bounded", tuple(range(MAX_RESTARTS)), MAX_PAUSE_S),
]


@pytest.mark.parametrize(
    ("died_at_s", "pause_s"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_a_store_that_dies_again_waits_longer(died_at_s: tuple[float, ...], pause_s: float) -> None:
    restarts = Restarts()
    assert [restarts.pause_s(now_s) for now_s in died_at_s][-1] == pytest.approx(pause_s)


def test_a_store_that_dies_at_every_start_is_given_up_before_its_actors_are() -> None:
    restarts, now_s = Restarts(), 0.0
    for _ in range(MAX_RESTARTS):
        now_s += restarts.pause_s(now_s)
    assert now_s < min(WINDOW_S, GCS_PATIENCE_S)
    with pytest.raises(RayLost, match="died 11 ×"):
        restarts.pause_s(now_s)


@contextmanager
def session(code: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that leads a session of its own, once it has said a line."""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


async def test_the_first_to_end_is_told() -> None:
    with session(FOR_EVER) as lives, session(FOR_EVER) as dies:
        async with asyncio.timeout(TIMEOUT_S):
            dies.kill()
            assert await first_ended(lives.pid, dies.pid) == dies.pid
            dies.wait()
            # Also when there is no such process any more.
            assert await first_ended(lives.pid, dies.pid) == dies.pid
        assert exists(lives.pid)


@pytest.mark.parametrize("leader", ["spared", "killed before"])
async def test_a_session_is_ended_with_its_orphans(leader: str) -> None:
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {FOR_EVER!r}])"
    with session(f"import signal; {child}; signal.pause()") as process:
        members = session_of(process.pid)
        assert len(members) == 2
        if leader == "killed before":
            process.kill()
        await end_session(process.pid, spare={process.pid})
        assert [pid for pid in members if exists(pid)] == (
            [process.pid] if leader == "spared" else []
        )


async def test_who_ends_in_time_is_not_killed() -> None:
    with session(FOR_EVER) as process:
        process.terminate()
        await end_session(process.pid, grace_s=TIMEOUT_S)
        assert process.wait() == -15


async def test_a_number_that_somebody_else_has_now_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    with session(FOR_EVER) as stranger:
        await clear_remains(Holder(pid=stranger.pid, scratch=tmp_path / "scratch"))
        assert exists(stranger.pid)
    assert not (tmp_path / "scratch").exists()


async def test_why_it_did_not_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(RayNotStarted, match="num-gpus"):
        await start_local_ray(tmp_path, num_cpus=1, num_gpus="many")  # type: ignore[arg-type]
