"""What a cluster is refused for before anything is started, and how a failed start is told."""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import BatonError, ModelError
from core.plan import Plan
from deploy import actors, cluster
from deploy.actors import ServiceThread, StartFailed
from deploy.cluster import ClusterSpec, check_port, start_cluster
from deploy.memory import TooLittleMemory
from deploy.tiny_model import write_tiny_llama
from rpc.serve import BindFailed


async def refusal(spec: ClusterSpec) -> tuple[BatonError, list[str]]:
    """Why it does not start, and the steps it had begun by then."""
    begun: list[str] = []
    with pytest.raises(BatonError) as caught:
        async with start_cluster(spec, begun.append):
            pass
    return caught.value, begun


async def test_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ClusterSpec(plan=Plan(), model_dir=write_tiny_llama(tmp_path / "tiny"))
    error, begun = await refusal(replace(spec, model_dir=tmp_path))
    assert (type(error), begun) == (ModelError, [])
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port: int = other.getsockname()[1]
        error, begun = await refusal(replace(spec, router_port=port))
        assert (type(error), begun) == (BindFailed, [])
        assert str(error) == f"cannot listen on 127.0.0.1:{port}: Address already in use"
    check_port(port)
    monkeypatch.setattr(cluster, "available_memory_bytes", lambda: 1e8)
    error, begun = await refusal(spec)
    assert (type(error), begun) == (TooLittleMemory, [])


async def fail(stop: asyncio.Event, ready: Callable[[str], None]) -> None:
    raise ModelError("no weights")


def test_a_failed_start_is_told_to_whoever_waits_for_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exits: list[int] = []
    monkeypatch.setattr(actors, "CRASH_PAUSE_S", 0.0)
    monkeypatch.setattr("os._exit", exits.append)
    monkeypatch.setattr("logging.shutdown", lambda: None)
    service = ServiceThread(fail, "decode-0")
    with pytest.raises(StartFailed, match="decode-0 cannot start: no weights"):
        service.address()
    service._thread.join()
    service._loop.close()  # whose process would have ended
    assert exits == [actors.EXIT_AFTER_CRASH]  # and Ray tries again
