"""DistServe's published workers in plain Python, step by step: batches that rotate at every step.

Whoever has had a step goes to the end of the queue; a batch is taken from its head, up to 50,000
tokens. Under load everybody advances slowly, where ordinary residency lets some finish.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from policy.distserve import Overhead, Parameters
from policy.table import Floats, Ints

MAX_TOKENS = 50_000
"""Of a decode batch, in its source."""
STAGE_S = 1e-3
"""Of a prefill step on one stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Columns; in order of arrival at the worker that is played."""

    at_s: Floats
    num_prompt_tokens: Ints
    num_output_tokens: Ints
    """As many decode steps are made."""


@dataclass(slots=True, kw_only=True)
class Decoding:
    """A decode worker's queue and clock."""

    parameters: Parameters
    requests: Requests
    overhead: Overhead = field(default_factory=Overhead)
    queue: deque[int] = field(default_factory=deque)
    steps: list[int] = field(default_factory=list)
    last_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        num = len(self.requests.at_s)
        self.steps, self.last_s = [0] * num, [0.0] * num

    def take(self) -> list[int]:
        """The batch of the next step."""
        batch: list[int] = []
        left = MAX_TOKENS
        while self.queue and (tokens := self._tokens(self.queue[0])) <= left:
            left -= tokens
            batch.append(self.queue.popleft())
        return batch

    def step_s(self, batch: Sequence[int]) -> float:
        """How long it takes."""
        base_s, token_s, answer_s = self.parameters.small
        if len(batch) >= self.parameters.threshold:
            base_s, token_s, answer_s = self.parameters.large
        num_tokens = sum(map(self._tokens, batch))
        step_s = base_s + token_s * num_tokens + answer_s * len(batch)
        overhead = self.overhead
        return step_s + overhead.step_s + overhead.per_token_s * (num_tokens - len(batch))

    def put_back(self, batch: Sequence[int], at_s: float) -> None:
        """Behind all others; those that have ended leave."""
        for r in batch:
            self.steps[r] += 1
            if self.steps[r] >= self.requests.num_output_tokens[r]:
                self.last_s[r] = at_s
            else:
                self.queue.append(r)

    def _tokens(self, r: int) -> int:
        return int(self.requests.num_prompt_tokens[r]) + self.steps[r] + 1


def rotating_decode(parameters: Parameters, requests: Requests) -> Floats:
    """Seconds per token of each request, from its arrival at the decode worker on."""
    worker = Decoding(parameters=parameters, requests=requests)
    at_s, begun, num = 0.0, 0, len(requests.at_s)
    while begun < num or worker.queue:
        if not worker.queue:
            at_s = max(at_s, float(requests.at_s[begun]))
        begun = _admit(worker.queue, requests.at_s, begun, at_s)
        batch = worker.take()
        at_s += worker.step_s(batch)
        begun = _admit(worker.queue, requests.at_s, begun, at_s)  # before those who come back
        worker.put_back(batch, at_s)
    return (np.array(worker.last_s) - requests.at_s) / requests.num_output_tokens


def rotating_colocated(
    parameters: Parameters, requests: Requests, max_step_tokens: int
) -> tuple[Floats, Floats]:
    """TTFT and TPOT in seconds; steps of prompts come first."""
    worker = Decoding(parameters=parameters, requests=requests)
    prompts: deque[int] = deque()
    num = len(requests.at_s)
    at_s, begun, first_s = 0.0, 0, np.zeros(num)
    while begun < num or prompts or worker.queue:
        if not (prompts or worker.queue):
            at_s = max(at_s, float(requests.at_s[begun]))
        begun = _admit(prompts, requests.at_s, begun, at_s)
        if prompts:
            batch = _take_prompts(prompts, requests, max_step_tokens)
            at_s += _prefill_s(worker, [int(requests.num_prompt_tokens[r]) for r in batch])
            first_s[batch] = at_s
            worker.queue.extend(batch)
        else:
            batch = worker.take()
            at_s += worker.step_s(batch)
            worker.put_back(batch, at_s)
    tpot_s = (np.array(worker.last_s) - first_s) / requests.num_output_tokens
    return first_s - requests.at_s, tpot_s


def _admit(queue: deque[int], arrivals_s: Floats, begun: int, at_s: float) -> int:
    while begun < len(arrivals_s) and arrivals_s[begun] <= at_s:
        queue.append(begun)
        begun += 1
    return begun


def _take_prompts(prompts: deque[int], requests: Requests, max_tokens: int) -> list[int]:
    batch: list[int] = []
    left = max_tokens
    while prompts and requests.num_prompt_tokens[prompts[0]] <= left:
        left -= int(requests.num_prompt_tokens[prompts[0]])
        batch.append(prompts.popleft())
    return batch


def _prefill_s(worker: Decoding, lengths: Sequence[int]) -> float:
    base_s, token_s, square_s = worker.parameters.prefill
    num_tokens = sum(lengths)
    step_s = base_s + token_s * num_tokens + square_s * sum(each**2 for each in lengths)
    overhead = worker.overhead
    return step_s + STAGE_S + overhead.step_s + overhead.per_token_s * num_tokens
