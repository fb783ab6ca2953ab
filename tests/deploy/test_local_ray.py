"""A real Ray in the background: it outlives its store, and leaves nothing however it ends."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.clock import MonotonicClock
from deploy.local_ray.background import running_local_ray, start_local_ray, stop_local_ray
from deploy.local_ray.door import LOG, Holder, RayDoor, read_holder
from deploy.local_ray.processes import exists, first_ended, session_of
from deploy.ray_runtime import SHARED_MEMORY, joined_ray

pytestmark = pytest.mark.ray

START_TIMEOUT_S = 120.0
CALL_TIMEOUT_S = 60.0
END_TIMEOUT_S = 30.0


class LocalRay:
    """One folder, what was started for it, and what shared memory held before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shared_before = shared_memory()
        self.door = self.start()
        self.holder = self._holder()

    def start(self) -> RayDoor:
        return asyncio.run(
            start_local_ray(self.folder, num_cpus=4, num_gpus=0, timeout_s=START_TIMEOUT_S)
        )

    def stop(self) -> None:
        asyncio.run(stop_local_ray(self.folder))

    def pid_of(self, name: str) -> int:
        """Of the only process of that name."""
        (pid,) = (p for p in session_of(self.holder.pid) if psutil.Process(p).name() == name)
        return pid

    def assert_nothing_is_left(self, *files: str) -> None:
        assert [p for p in session_of(self.holder.pid) if exists(p)] == []
        assert not self.holder.scratch.exists()
        assert sorted(path.name for path in self.folder.iterdir()) == sorted(files)
        assert shared_memory() <= self._shared_before
        assert running_local_ray(self.folder) is None

    def _holder(self) -> Holder:
        holder = read_holder(self.folder)
        assert holder is not None
        return holder


def shared_memory() -> set[str]:
    """Ray's in it."""
    return {path.name for path in SHARED_MEMORY.glob("*plasma*")}


@pytest.fixture
def local_ray(tmp_path: Path) -> Iterator[LocalRay]:
    started = LocalRay(tmp_path / "state" / "one")
    yield started
    started.stop()


def pid_actor(ray: Any) -> Any:  # noqa: ANN401 - Ray's
    """An actor class whose actors say which process they are."""

    class PidActor:
        def pid(self) -> int:
            return os.getpid()

    return ray.remote(num_cpus=1, max_restarts=-1)(PidActor)


def test_actors_outlive_the_store_which_comes_back(local_ray: LocalRay) -> None:
    clock = MonotonicClock()
    door = local_ray.door
    with joined_ray(door.address, door.token, "baton.test") as ray:
        first = pid_actor(ray).options(name="first", lifetime="detached").remote()
        pid = ray.get(first.pid.remote(), timeout=CALL_TIMEOUT_S)

        store = local_ray.pid_of("gcs_server")
        os.kill(store, signal.SIGKILL)
        killed_at_s = clock.now_s()

        assert ray.get(first.pid.remote(), timeout=CALL_TIMEOUT_S) == pid
        print(f"\nactor answered {clock.now_s() - killed_at_s:.3f} s after the store was killed")
        found = ray.get_actor("first", namespace="baton.test")
        print(f"store answered {clock.now_s() - killed_at_s:.3f} s after it was killed")
        assert ray.get(found.pid.remote(), timeout=CALL_TIMEOUT_S) == pid
        assert local_ray.pid_of("gcs_server") != store

        second = pid_actor(ray).options(name="second", lifetime="detached").remote()
        assert ray.get(second.pid.remote(), timeout=CALL_TIMEOUT_S) != pid
        group = ray.util.placement_group([{"CPU": 1}], strategy="STRICT_PACK")
        ray.get(group.ready(), timeout=CALL_TIMEOUT_S)
    # Another driver, later; and starting what runs is finding it.
    assert local_ray.start() == door == running_local_ray(local_ray.folder)
    with joined_ray(door.address, door.token, "baton.test") as ray:
        found = ray.get_actor("first")
        assert ray.get(found.pid.remote(), timeout=CALL_TIMEOUT_S) == pid
    stopped_at_s = clock.now_s()
    local_ray.stop()
    print(f"stopped in {clock.now_s() - stopped_at_s:.1f} s")
    local_ray.assert_nothing_is_left()


@pytest.mark.parametrize("who", ["the warden", "the head", "the raylet"])
def test_nothing_outlives_a_kill(local_ray: LocalRay, who: str) -> None:
    door, warden = local_ray.door, local_ray.holder.pid
    with joined_ray(door.address, door.token, "baton.test") as ray:
        actor = pid_actor(ray).options(name="first", lifetime="detached").remote()
        ray.get(actor.pid.remote(), timeout=CALL_TIMEOUT_S)
    raylet = local_ray.pid_of("raylet")
    pids = {"the warden": warden, "the head": psutil.Process(raylet).ppid(), "the raylet": raylet}
    os.kill(pids[who], signal.SIGKILL)
    asyncio.run(ended(session_of(warden)))
    # Without its warden the head ends as told to; otherwise the log stays, for whoever asks why.
    local_ray.assert_nothing_is_left(*([] if who == "the warden" else [LOG]))


def test_what_was_killed_all_at_once_is_cleared_by_the_next(local_ray: LocalRay) -> None:
    killed = local_ray.holder
    names = {pid: psutil.Process(pid).name() for pid in session_of(killed.pid)}
    victims = [pid for pid, name in names.items() if name != "raylet"]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    # A signal is not the end yet.
    asyncio.run(ended(victims))
    assert running_local_ray(local_ray.folder) is None
    assert killed.scratch.exists()
    assert local_ray.start() != local_ray.door
    assert not any(exists(pid) for pid in session_of(killed.pid))
    assert not killed.scratch.exists()


async def ended(pids: list[int]) -> None:
    async with asyncio.timeout(END_TIMEOUT_S):
        for pid in pids:
            await first_ended(pid)
