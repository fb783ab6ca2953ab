"""Ids in use and just ended: what is remembered, and for how long."""

import pytest

from core.clock import ManualClock
from core.errors import StaleFence
from core.ids import RequestId
from core.request import Request, SamplingParams, StopParams
from router import running
from router.running import RunningRequests


def request(name: str, epoch: int = 0) -> Request:
    return Request(
        request_id=RequestId(name),
        model="m",
        prompt_token_ids=(1,),
        sampling=SamplingParams(),
        stop=StopParams(max_tokens=1),
        deadline_s=1.0,
        epoch=epoch,
    )


def run(requests: RunningRequests, name: str, attempts: int = 0, epoch: int = 0) -> int:
    """One request from begin to end, after so many attempts; how many came before."""
    with requests.hold(request(name, epoch)) as held:
        before = held.num_attempts_before
        held.num_attempts_before += attempts
    return before


def test_a_request_goes_on_after_the_attempts_of_its_ended_namesake() -> None:
    requests = RunningRequests(ManualClock())
    assert run(requests, "a", attempts=3) == 0
    assert run(requests, "a") == 3
    assert run(requests, "a", epoch=1) == 0, "a new epoch counts anew"


def test_what_ended_is_forgotten_after_its_time_and_no_sooner() -> None:
    clock = ManualClock()
    requests = RunningRequests(clock)
    run(requests, "a", attempts=3)
    clock.advance(running.REMEMBERED_S - 1)
    run(requests, "b")
    assert run(requests, "a") == 3
    clock.advance(running.REMEMBERED_S + 1)
    run(requests, "b")
    assert list(requests._ended) == [RequestId("b")]


def test_whoever_waited_for_admission_learns_that_its_id_is_taken() -> None:
    requests = RunningRequests(ManualClock())
    with requests.hold(request("a")) as waiting:
        waiting.check()
        with requests.hold(request("a", epoch=1)) as resumed:
            resumed.check()
            with pytest.raises(StaleFence, match="epoch 1"):
                waiting.check()
