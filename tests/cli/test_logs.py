"""`baton logs`: the last lines whatever their length, and then what comes."""

import asyncio
import io
from collections.abc import Callable

import pytest
import typer
from typer.testing import CliRunner

from cli import logs as logs_module
from cli.logs import ALL, FIRST_BYTES, MAX_BYTES, Ask, follow_log, logs, write_from, write_tail
from core.errors import BatonError, PeerLost, UnknownRequest
from rpc.pb.controller_pb2 import LogsReply
from tests.cli.conftest import FakeCluster
from tests.cli.fake_cluster import cluster_state, member

app = typer.Typer()
app.command()(logs)
runner = CliRunner()


def asking(log: Callable[[], bytes], asked: list[tuple[int, int]]) -> Ask:
    """A log as the contract says it is given."""

    async def ask(offset: int, max_bytes: int) -> LogsReply:
        asked.append((offset, max_bytes))
        whole = log()
        start = max(0, len(whole) + offset) if offset < 0 else min(offset, len(whole))
        piece = whole[start : start + max_bytes]
        return LogsReply(text=piece.decode(errors="replace"), next_offset=start + len(piece))

    return ask


def lines(num: int, chars: int) -> bytes:
    return b"".join(b"%05d%s\n" % (i, b"." * (chars - 6)) for i in range(num))


TAILS = [
    # id, log, lines wanted, lines got, first one, replies asked for
    ("empty", b"", 100, 0, "", 1),
    ("fewer", lines(7, 80), 100, 7, "00000", 1),
    ("as many", lines(100, 80), 100, 100, "00000", 1),
    ("more", lines(5000, 80), 100, 100, "04900", 1),
    ("none", lines(7, 80), 0, 0, "", 1),
    ("longer than the first reply", lines(1000, 800), 100, 100, "00900", 2),
    ("longer than any reply", lines(30, 100_000), 100, 11, "...", 3),
    ("without an end", lines(7, 80) + b"unfinished", 2, 2, "00006", 1),
]


@pytest.mark.parametrize(
    ("log", "num", "want", "first", "num_asked"), [c[1:] for c in TAILS], ids=[c[0] for c in TAILS]
)
async def test_the_last_lines(log: bytes, num: int, want: int, first: str, num_asked: int) -> None:
    out, asked = io.StringIO(), list[tuple[int, int]]()
    assert await write_tail(asking(lambda: log, asked), num, out) == len(log)
    got = out.getvalue().splitlines()
    assert len(got) == want
    assert not got or got[0].startswith(first)
    assert log.decode().endswith(out.getvalue())
    assert len(asked) == num_asked
    assert all(-offset == size <= MAX_BYTES for offset, size in asked)
    assert asked[0][1] == FIRST_BYTES


async def test_all_of_it_in_pieces() -> None:
    log, out, asked = lines(30, 100_000), io.StringIO(), list[tuple[int, int]]()
    assert await write_tail(asking(lambda: log, asked), ALL, out) == len(log)
    assert out.getvalue() == log.decode()
    assert [offset for offset, _ in asked] == [0, MAX_BYTES, 2 * MAX_BYTES, len(log)]


async def test_nothing_new_writes_nothing() -> None:
    out = io.StringIO()
    assert await write_from(asking(lambda: b"abc", []), 3, out) == 3
    assert out.getvalue() == ""


async def followed(*moments: bytes | BatonError) -> tuple[str, list[str]]:
    """What is written and told when each poll sees the next of `moments`; the last one ends it."""
    left, told, out = list(moments), list[str](), io.StringIO()

    async def ask(offset: int, max_bytes: int) -> LogsReply:
        now = left[0]
        if isinstance(now, BatonError):
            left.pop(0)
            raise now
        reply = await asking(lambda: now, [])(offset, max_bytes)
        if not reply.text:
            left.pop(0)
        return reply

    with pytest.raises(UnknownRequest):
        await follow_log(ask, 0, out, told.append)
    return out.getvalue(), told


END = UnknownRequest("the test ends")


async def test_what_comes_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "POLL_S", 0.0)
    assert await followed(b"a\n", b"a\n", b"a\nb\n", END) == ("a\nb\n", [])


async def test_a_restart_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "POLL_S", 0.0)
    gone = PeerLost("gone")
    out, told = await followed(b"a\n", gone, gone, b"a\nb\n", gone, b"a\nb\nc\n", END)
    assert out == "a\nb\nc\n"
    assert told == ["controller restarting: gone"] * 2


def run(*arguments: str, exit_code: int = 0) -> str:
    result = runner.invoke(app, arguments)
    assert result.exit_code == exit_code, result.output
    return result.output


def test_a_log_is_shown_word_for_word(cluster: FakeCluster) -> None:
    cluster.script.logs = {"prefill-a": lines(200, 20) + "[bold]ä\n".encode()}
    output = run("prefill-a")
    assert len(output.splitlines()) == 100
    assert output.endswith("[bold]ä\n")
    assert len(run("prefill-a", "--tail", "-1").splitlines()) == 201


def test_an_unknown_name_lists_those_there_are(cluster: FakeCluster) -> None:
    cluster.script.watches = [[cluster_state([member("prefill-a"), member("router-0")])]]
    output = run("prefill-z", exit_code=1)
    assert "NO_LOG: no log of prefill-z" in output
    assert "there is prefill-a, router-0, controller" in output


def test_following_ends_with_ctrl_c(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.script.logs = {"controller": b"a\n"}

    async def interrupted(*_: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        import os
        import signal

        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    monkeypatch.setattr(logs_module, "follow_log", interrupted)
    assert run("controller", "--follow") == "a\n"


def test_bad_input() -> None:
    run("prefill-a", "--tail", "-2", exit_code=2)


def test_nobody_leads(cluster: FakeCluster) -> None:
    cluster.store.leader = None
    assert "NO_CONTROLLER" in run("prefill-a", exit_code=1)
