"""Parts of a long command follow each other without a gap."""

from io import StringIO

from rich.console import Console

from cli.parts import Parts, parts_table
from core.clock import ManualClock


def test_parts_sum_to_the_whole() -> None:
    clock = ManualClock(5.0)
    parts = Parts(clock)
    clock.advance(1.0)
    parts.end("look")
    parts.begin("start")
    clock.advance(2.0)
    parts.begin("join")
    clock.advance(4.0)
    parts.end_last()
    clock.advance(8.0)
    parts.end("wait")
    clock.advance(16.0)
    parts.end_last()
    assert parts.by_name == {"look": 1.0, "start": 2.0, "join": 4.0, "wait": 8.0}


def test_what_comes_twice_is_counted_once() -> None:
    clock = ManualClock()
    parts = Parts(clock)
    for _ in range(2):
        parts.begin("again")
        clock.advance(1.0)
        parts.end_last()
    assert parts.by_name == {"again": 2.0}


def test_the_table_says_the_sum() -> None:
    clock = ManualClock()
    parts = Parts(clock)
    for name in ("one", "two"):
        clock.advance(1.5)
        parts.end(name)
    console = Console(width=60, file=StringIO())
    with console.capture() as shown:
        console.print(parts_table(parts))
    assert shown.get().split()[-1] == "3.0"
