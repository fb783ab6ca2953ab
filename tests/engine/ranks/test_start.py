"""What cannot start says why, and leaves nothing behind."""

import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from core.config import EngineConfig
from core.errors import BatonError, ModelError
from core.parallel import ParallelLayout
from engine.ranks import process
from engine.ranks.errors import RankLost
from engine.ranks.spec import RankFiles, RankSpec
from engine.ranks.start import ranked_runner, start_ranks
from tests.engine.ranks.ranked import ENGINE
from tests.engine.tiny import TinyModel


def never(reason: str) -> None:
    raise AssertionError(f"lost before it was there: {reason}")


REFUSED: list[tuple[str, EngineConfig, ParallelLayout, str]] = [
    ("too many stages", ENGINE, ParallelLayout(pp=4), "pp = 4: the model has 3 layers"),
    ("heads do not divide", ENGINE, ParallelLayout(tp=3), "tp = 3: more ranks"),
    ("cuda", replace(ENGINE, device="cuda"), ParallelLayout(tp=2), "only offered on the CPU"),
    ("dtype", replace(ENGINE, dtype="int8"), ParallelLayout(tp=2), "int8"),
]


@pytest.mark.parametrize(
    ("engine", "layout", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_refused_before_a_process_is_started(
    three_layers: TinyModel,
    monkeypatch: pytest.MonkeyPatch,
    engine: EngineConfig,
    layout: ParallelLayout,
    message: str,
) -> None:
    monkeypatch.setattr(process, "_command", never)
    with pytest.raises(ModelError, match=message):
        start_ranks(three_layers.directory, engine=engine, layout=layout, on_lost=never)


def test_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        start_ranks(tmp_path, engine=ENGINE, layout=ParallelLayout(tp=2), on_lost=never)


SPEAK = """
import socket, sys
from engine.ranks.channel import Channel
from engine.ranks.wire import Answer, encode_answer
channel = Channel(socket.socket(fileno=int(sys.argv[1])))
channel.send(encode_answer(Answer(error={error!r})), 5.0)
channel.receive(None)
"""
FAKES = [
    # id              program                              error       message
    ("dies", "import sys; sys.exit('no torch here')", RankLost, "ended with status 1: no torch"),
    ("is killed", "import os; os.kill(os.getpid(), 15)", RankLost, "was killed by SIGTERM"),
    ("says why", SPEAK.format(error="no such weights"), ModelError, "rank 1 .*: no such weights"),
]


@pytest.mark.parametrize(
    ("program", "error", "message"), [f[1:] for f in FAKES], ids=[f[0] for f in FAKES]
)
def test_a_rank_that_cannot_start(
    three_layers: TinyModel,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    error: type[BatonError],
    message: str,
) -> None:
    def command(_spec: RankSpec, channel_fd: int, _files: RankFiles) -> list[str]:
        return [sys.executable, "-c", program, str(channel_fd)]

    before = children()
    monkeypatch.setattr(process, "_command", command)
    layout = ParallelLayout(tp=2)
    with pytest.raises(error, match=message):
        start_ranks(three_layers.directory, engine=ENGINE, layout=layout, on_lost=never)
    assert children() == before


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def test_the_runner_ends_with_its_context(three_layers: TinyModel) -> None:
    before = children()
    layout = ParallelLayout(pp=2)
    with ranked_runner(
        three_layers.directory, engine=ENGINE, layout=layout, on_lost=never
    ) as runner:
        runner.warm_up()
        assert len(children() - before) == 1
    assert children() == before


def test_specs_round_trip() -> None:
    spec = RankSpec(
        model_dir=Path("models") / "tiny",
        dtype="float32",
        layout=ParallelLayout(tp=2, pp=3),
        rank=4,
        num_blocks=7,
        block_size=16,
        num_threads=1,
        timeout_s=15.0,
        store_port=1234,
    )
    assert RankSpec.from_json(spec.to_json()) == spec
