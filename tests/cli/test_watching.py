"""Watching goes on over a controller's death, its restart elsewhere and its silence."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest

from cli.controller import ControllerSilent, NoController
from cli.running import NoCluster
from cli.watching import Away, states
from core.errors import BatonError
from rpc.pb.controller_pb2 import ClusterState
from tests.cli.fake_cluster import Script, cluster_state, serving

FIRST, SECOND, THIRD = (cluster_state([], edition=n) for n in (1, 2, 3))


def finding(*found: str | BatonError) -> Callable[[], Awaitable[str]]:
    """One after the other; the last one again and again."""
    left = list(found)

    async def find() -> str:
        each = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(each, BatonError):
            raise each
        return each

    return find


async def take(num: int, find: Callable[[], Awaitable[str]]) -> list[ClusterState | Away]:
    found: list[ClusterState | Away] = []
    async with aclosing(states(find, pause_s=0.0)) as stream:
        async for each in stream:
            found.append(each)
            if len(found) == num:
                break
    return found


def kinds(found: list[ClusterState | Away]) -> list[object]:
    return [f.edition if isinstance(f, ClusterState) else type(f.error) for f in found]


async def test_each_change_comes() -> None:
    async with serving(Script(watches=[[FIRST, SECOND, THIRD]])) as address:
        assert kinds(await take(3, finding(address))) == [1, 2, 3]


async def test_a_controller_that_ends_is_looked_up_again() -> None:
    script = Script(watches=[[FIRST], [SECOND]], ends_watches=True)
    async with serving(script) as address:
        assert kinds(await take(3, finding(address))) == [1, ControllerSilent, 2]


async def test_the_next_one_is_elsewhere() -> None:
    before = Script(watches=[[FIRST]], ends_watches=True)
    after = Script(watches=[[SECOND]])
    async with serving(before) as old, serving(after) as new:
        find = finding(old, NoController("nobody"), NoController("nobody"), new)
        want = [1, ControllerSilent, NoController, NoController, 2]
        assert kinds(await take(5, find)) == want


async def test_one_that_has_died_is_waited_for() -> None:
    async with serving(Script(watches=[[FIRST]])) as address:
        pass
    async with serving(Script(watches=[[SECOND]])) as other:
        assert kinds(await take(2, finding(address, other))) == [ControllerSilent, 2]


async def test_a_long_stream_is_opened_anew_without_a_word() -> None:
    async with serving(Script(watches=[[FIRST], [SECOND]])) as address:
        found = []
        async with aclosing(states(finding(address), pause_s=0.0, watch_s=0.2)) as stream:
            async for each in stream:
                found.append(each)
                if len(found) == 2:
                    break
    assert kinds(found) == [1, 2]


async def test_what_another_try_does_not_mend_is_raised() -> None:
    with pytest.raises(NoCluster):
        await take(1, finding(NoCluster("none")))
