"""What the demo checks first, and the table it ends with."""

import pytest
from rich.console import Console

from core.plan import Plan, PoolPlan
from core.request import FinishReason
from core.timing import HandoffTiming, PrefillTiming
from deploy import demo
from deploy.cluster import threads_per_instance
from deploy.timing_table import timing_table
from router.events import Finished, RequestTiming


def test_too_little_memory_is_said_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "terminate_like_ctrl_c", lambda: None)
    monkeypatch.setattr(demo, "available_memory_bytes", lambda: 1e9)
    assert demo.main() == 1
    assert capsys.readouterr().out.startswith(
        "demo: 1.0 GB of memory are free, 3.0 GB are needed: close other programs"
    )


def test_parts_of_a_sum_add_up_in_the_table() -> None:
    timing = RequestTiming(
        ttft_s=0.5,
        router_queue_s=0.1,
        prefill=PrefillTiming(queue_s=0.1, compute_s=0.25),
        first_gap_s=0.2,
        handoff=HandoffTiming(source_tail_s=0.01, sink_tail_s=0.02, first_step_s=0.15),
    )
    finished = Finished(
        choice=0, reason=FinishReason.LENGTH, matched_stop="", num_output_tokens=2, timing=timing
    )
    console = Console(width=80)
    with console.capture() as captured:
        console.print(timing_table([finished]))
    rows = {
        cells[1].strip(): cells[2].strip()
        for line in captured.get().splitlines()
        if len(cells := line.split("│")) == 4
    }
    assert rows["return (network)"] == "50.0"
    assert rows["exposed transfer"] == "30.0"
    assert rows["network"] == "20.0"


def test_cores_are_shared_and_nobody_gets_none() -> None:
    crowd = Plan(prefill=PoolPlan(replicas=1000), decode=PoolPlan(replicas=1000))
    assert threads_per_instance(crowd) == 1
    assert threads_per_instance(Plan()) >= 1
