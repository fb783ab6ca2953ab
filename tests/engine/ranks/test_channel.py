"""Frames arrive whole, and an end that is gone or silent is told apart."""

import socket
import struct
from collections.abc import Iterator

import pytest

from engine.ranks import channel as channel_module
from engine.ranks.channel import MAX_FRAME_BYTES, Channel
from engine.ranks.errors import ChannelClosed, ChannelStalled, FrameError

Ends = tuple[Channel, Channel]


@pytest.fixture
def ends() -> Iterator[Ends]:
    one, other = map(Channel, socket.socketpair())
    yield one, other
    one.close()
    other.close()


def test_frames_arrive_whole_and_in_order(ends: Ends) -> None:
    frames = [b"", b"a", b"step" * 1000]
    for frame in frames:
        ends[0].send(frame, 5.0)
    assert [ends[1].receive(5.0) for _ in frames] == frames


def test_an_end_that_closed_is_noticed(ends: Ends) -> None:
    ends[0].send(b"last words", 5.0)
    ends[0].close()
    assert ends[1].receive(None) == b"last words"
    with pytest.raises(ChannelClosed):
        ends[1].receive(None)
    with pytest.raises(ChannelClosed):
        ends[1].send(b"too late", 5.0)


def test_a_frame_cut_short_is_no_frame() -> None:
    one, other = socket.socketpair()
    with one:
        one.sendall(struct.pack("<I", 10) + b"half")
    with pytest.raises(ChannelClosed):
        Channel(other).receive(5.0)
    other.close()


def test_silence_is_bounded(ends: Ends) -> None:
    with pytest.raises(ChannelStalled, match=r"no frame within 0\.01 s"):
        ends[1].receive(0.01)


def test_a_reader_that_does_not_read_is_bounded(ends: Ends) -> None:
    with pytest.raises(ChannelStalled, match="not taken"):
        ends[0].send(bytes(8 * 1024 * 1024), 0.05)


def test_frames_are_bounded(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FrameError, match=f"at most {MAX_FRAME_BYTES}"):
        ends[0].send(bytes(MAX_FRAME_BYTES + 1), 5.0)
    ends[0].send(bytes(100), 5.0)
    monkeypatch.setattr(channel_module, "MAX_FRAME_BYTES", 99)
    with pytest.raises(FrameError, match="frame of 100 bytes"):
        ends[1].receive(5.0)
