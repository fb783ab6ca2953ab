"""A rank that dies or hangs ends its instance at once, and says which it was."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch

from core.parallel import ParallelLayout
from engine.ranks.errors import RankLost
from tests.engine.ranks.ranked import PATIENCE_S, Ranked, start
from tests.engine.tiny import Answer, TinyModel, random_prompt

MID_STEP = [
    (2, 1, 1),
    (1, 3, 1),
    (1, 3, 2),
]


def step(ranked: Ranked) -> None:
    ranked.runner.step([Answer(random_prompt(100, seed=1), tuple(range(7))).next_entry()])


def check_ended(ranked: Ranked, reason: str) -> None:
    """No step runs any more, everybody was told once, and nothing is left."""
    with pytest.raises(RankLost) as caught:
        step(ranked)
    assert str(caught.value) == reason
    assert ranked.survivors() == []
    ranked.forward.close()
    assert not ranked.lost, "told twice"


def test_an_idle_rank_is_killed(three_layers: TinyModel) -> None:
    ranked = start(three_layers, ParallelLayout(pp=2))
    step(ranked)
    os.kill(ranked.pids[1], signal.SIGKILL)
    reason = ranked.reason()
    assert reason == f"rank 1 (pid {ranked.pids[1]}) was killed by SIGKILL"
    check_ended(ranked, reason)


def test_a_rank_that_fails_says_why(three_layers: TinyModel) -> None:
    ranked = start(three_layers, ParallelLayout(tp=2))
    ranked.forward._crew.send(b"no step")
    reason = ranked.reason()
    assert reason.startswith(f"rank 1 (pid {ranked.pids[1]}) ended with status 1: ")
    assert "FrameError: step: 7 bytes, less than a header" in reason
    check_ended(ranked, reason)


@pytest.mark.parametrize(("tp", "pp", "rank"), MID_STEP)
def test_a_computing_rank_is_killed(three_layers: TinyModel, tp: int, pp: int, rank: int) -> None:
    ranked = start(three_layers, ParallelLayout(tp=tp, pp=pp))
    reason = interrupt(ranked, rank, signal.SIGKILL)
    assert reason == f"rank {rank} (pid {ranked.pids[rank]}) was killed by SIGKILL"
    check_ended(ranked, reason)


@pytest.mark.parametrize(("tp", "pp"), [(1, 3), (2, 1)])
def test_a_stopped_rank_is_lost_too(three_layers: TinyModel, tp: int, pp: int) -> None:
    ranked = start(three_layers, ParallelLayout(tp=tp, pp=pp), timeout_s=2.0)
    reason = interrupt(ranked, 1, signal.SIGSTOP)
    assert f"rank 1 (pid {ranked.pids[1]}) did not answer" in reason
    assert "rank 2" not in reason.partition(":")[0]
    check_ended(ranked, reason)


def interrupt(ranked: Ranked, rank: int, number: signal.Signals) -> str:
    """Send the signal while a step waits for the rank, which was stopped before it."""
    began = threading.Event()
    module = ranked.forward._stage._module
    assert isinstance(module, torch.nn.Module)
    module.register_forward_pre_hook(lambda *_: began.set())
    os.kill(ranked.pids[rank], signal.SIGSTOP)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(step, ranked)
        assert began.wait(PATIENCE_S)
        os.kill(ranked.pids[rank], number)
        with pytest.raises(RankLost) as caught:
            running.result(PATIENCE_S)
    reason = ranked.reason()
    assert str(caught.value) == reason
    return reason


LEADER = """
import sys
from pathlib import Path
from core.config import EngineConfig
from core.parallel import ParallelLayout
from engine.ranks.start import start_ranks

forward = start_ranks(
    Path(sys.argv[1]),
    engine=EngineConfig(num_blocks=4),
    layout=ParallelLayout(tp=2),
    on_lost=print,
)
print(*forward.pids.values(), flush=True)
sys.stdin.read()
"""


def test_ranks_end_with_their_leader(three_layers: TinyModel) -> None:
    command = [sys.executable, "-c", LEADER, str(three_layers.directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as leader:
        assert leader.stdout is not None
        ranks = [psutil.Process(int(pid)) for pid in leader.stdout.readline().split()]
        leader.kill()
    assert len(ranks) == 1
    assert psutil.wait_procs(ranks, timeout=PATIENCE_S)[1] == []
