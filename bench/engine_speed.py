"""How fast an instance's steps are, beside transformers and beside what memory allows.

Workload, seeds and bars are fixed here. SmolLM2, float32, greedy, one thread on either side; ours
and the baseline take turns in one process, so that noise meets both; medians are compared. A prompt
of 512 tokens (ours in the chunks of a prefill instance); answers of 1 and of 8 prompts of 128
tokens, 48 steps after 4 that warm up. Blocks lie scattered, as in an instance that has served for a
while. The limit of a step at batch 1 is the time to read all weights and the answer's KV once, at
the read bandwidth measured between the rounds.
"""

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from bench.asking import random_prompt
from bench.read_bandwidth import ReadLoops
from bench.report import Bar, Figure, figure
from bench.transformers_baseline import Baseline
from core.clock import MonotonicClock
from core.config import EngineConfig, WorkerConfig
from core.request import SamplingParams, StopParams
from engine.batch import BatchEntry, SampleSpec
from engine.model import load_model
from engine.runner import LocalRunner, one_rank

Progress = Callable[[str], None]
Outcome = tuple[list[Figure], list[Bar]]

SEED = 20_263

NUM_ROUNDS = 5
PREFILL_TOKENS = 512
CONTEXT_TOKENS = 128
NUM_WARM_UP_STEPS = 4
NUM_STEPS = 48
MIN_PREFILL_RATIO = 1.0
MIN_DECODE_RATIOS = {1: 1.3, 8: 1.15}
"""By batch size; of tokens per second, ours to the baseline's."""
MIN_BANDWIDTH_SHARE = 0.60

clock = MonotonicClock()


# --- pure -------------------------------------------------------------------------------------


def scattered_tables(num_tables: int, num_blocks: int) -> list[tuple[int, ...]]:
    """Block tables of `num_blocks` each whose neighbours belong to other tables."""
    return [tuple(range(first, num_tables * num_blocks, num_tables)) for first in range(num_tables)]


def num_differing(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> int:
    """Tokens that are not the same, over answers of equal lengths."""
    return sum(
        our_id != their_id
        for our_ids, their_ids in zip(ours, theirs, strict=True)
        for our_id, their_id in zip(our_ids, their_ids, strict=True)
    )


def time_ratio_bar(what: str, ours: Figure, theirs: Figure, bound: float) -> Bar:
    """Tokens per second against the baseline's, from the times that both take for as many."""
    name = f"{what}: tokens/s, ours to transformers'"
    return Bar(name=name, value=theirs.median / ours.median, bound=bound, unit="×", at_most=False)


def bandwidth_bar(limit_s: float, step: Figure) -> Bar:
    """How much of a step is the reading that it cannot do without."""
    return Bar(
        name="decode, batch 1: share of the read-bandwidth limit",
        value=limit_s / step.median,
        bound=MIN_BANDWIDTH_SHARE,
        unit="×",
        at_most=False,
    )


def num_read_bytes(num_weight_bytes: int, kv_bytes_per_token: int) -> float:
    """Of a measured step at batch 1, on average: all weights once, and the KV before the token."""
    num_tokens = CONTEXT_TOKENS + NUM_WARM_UP_STEPS + NUM_STEPS / 2
    return num_weight_bytes + num_tokens * kv_bytes_per_token


def greedy_entry(
    key: str,
    token_ids: Sequence[int],
    start: int,
    block_ids: Sequence[int],
    output_token_ids: Sequence[int] = (),
) -> BatchEntry:
    """An entry of a step that samples one more token, the likeliest."""
    return BatchEntry(
        key=key,
        token_ids=token_ids,
        start=start,
        block_ids=block_ids,
        sample=SampleSpec(
            sampling=SamplingParams(temperature=0),
            stop=StopParams(max_tokens=len(output_token_ids) + 2),
            child_index=0,
            prompt_token_ids=(),
            output_token_ids=output_token_ids,
        ),
    )


# --- steps ------------------------------------------------------------------------------------


class Side(Protocol):
    """One of the two that are compared; see Baseline."""

    def prefill(self, prompt: Sequence[int]) -> int: ...
    def begin(self, prompts: Sequence[Sequence[int]]) -> list[int]: ...
    def rewind(self) -> None: ...
    def step(self, token_ids: Sequence[int]) -> list[int]: ...


@dataclass(slots=True)
class Answer:
    """One request that is being answered."""

    prompt: Sequence[int]
    block_ids: tuple[int, ...]
    output_token_ids: list[int] = field(default_factory=list)


class Engine:
    """Our runner, driven as an instance drives it."""

    def __init__(self, runner: LocalRunner, config: EngineConfig, step_tokens: int) -> None:
        """Prompts are computed in chunks of `step_tokens`."""
        self._runner = runner
        self._block_size = config.block_size
        self._step_tokens = step_tokens
        num_blocks = -(-PREFILL_TOKENS // config.block_size)
        self._tables = scattered_tables(config.num_blocks // num_blocks, num_blocks)
        self._answers: list[Answer] = []

    def prefill(self, prompt: Sequence[int]) -> int:
        """The first token after a prompt, in blocks that were not used for long."""
        self._tables.append(self._tables.pop(0))
        return self._prefill(prompt, self._tables[-1])

    def begin(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Compute prompts, to be continued by `step`; their first tokens."""
        num_tokens = len(prompts[0]) + NUM_WARM_UP_STEPS + NUM_STEPS
        tables = scattered_tables(max(len(prompts), 2), -(-num_tokens // self._block_size))
        self._answers = [Answer(p, table) for p, table in zip(prompts, tables, strict=False)]
        return [self._prefill(answer.prompt, answer.block_ids) for answer in self._answers]

    def rewind(self) -> None:
        """Forget all that came after the prompts."""
        for answer in self._answers:
            answer.output_token_ids.clear()

    def step(self, token_ids: Sequence[int]) -> list[int]:
        """One more token of every answer."""
        entries = []
        for answer, token_id in zip(self._answers, token_ids, strict=True):
            start = len(answer.prompt) + len(answer.output_token_ids)
            answer.output_token_ids.append(token_id)
            key = str(answer.block_ids[0])
            entries.append(
                greedy_entry(key, (token_id,), start, answer.block_ids, answer.output_token_ids)
            )
        return [
            token_id for token_id in self._runner.step(entries).token_ids if token_id is not None
        ]

    def _prefill(self, prompt: Sequence[int], block_ids: tuple[int, ...]) -> int:
        for start in range(0, len(prompt), self._step_tokens):
            chunk = prompt[start : start + self._step_tokens]
            is_last = start + len(chunk) == len(prompt)
            entry = greedy_entry("prompt", chunk, start, block_ids)
            result = self._runner.step([entry if is_last else replace(entry, sample=None)])
        (token_id,) = result.token_ids
        assert token_id is not None, "the last chunk samples"
        return token_id


@dataclass(slots=True)
class Turns:
    """What one side did in all rounds."""

    side: Side
    times_s: list[float] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    """Per round and step, warm-up included."""


def measure_steps(
    model_dir: Path, baseline: Baseline, divisor: int, on_progress: Progress
) -> Outcome:
    """All steps, in the calling thread; `divisor` divides the number of rounds."""
    num_rounds = max(1, NUM_ROUNDS // divisor)
    model, config = load_model(model_dir), EngineConfig()
    runner = one_rank(
        model, num_blocks=config.num_blocks, block_size=config.block_size, num_threads=1
    )
    runner.warm_up()
    sides = Engine(runner, config, WorkerConfig().prefill_step_tokens), baseline
    loops = ReadLoops(clock)
    on_progress(f"prompts of {PREFILL_TOKENS} tokens")
    figures, bars = _prefill_outcome(sides, num_rounds)
    for batch, bound in MIN_DECODE_RATIOS.items():
        on_progress(f"answers, {batch} at once")
        turns = _decode_rounds(sides, batch, num_rounds, loops)
        times, bar = _compared(f"decode step, batch {batch}", turns, bound)
        figures += [*times, _differing(batch, turns)]
        bars.append(bar)
        if batch == 1:
            num_bytes = num_read_bytes(baseline.num_weight_bytes, model.spec.kv_bytes_per_token)
            limits, limit_bar = _limit_outcome(loops, num_bytes, times[0])
            figures += limits
            bars.append(limit_bar)
    return figures, bars


def _prefill_outcome(sides: Sequence[Side], num_rounds: int) -> Outcome:
    prompt = random_prompt(random.Random(SEED), PREFILL_TOKENS)
    turns = [Turns(side) for side in sides]
    for index in range(1 + num_rounds):
        for turn in turns:
            started_s = clock.now_s()
            turn.answers.append([turn.side.prefill(prompt)])
            # The first round warms up.
            turn.times_s += [clock.now_s() - started_s] * bool(index)
    times, bar = _compared(f"prefill of {PREFILL_TOKENS} tokens", turns, MIN_PREFILL_RATIO)
    return [*times], [bar]


def _decode_rounds(
    sides: Sequence[Side], batch: int, num_rounds: int, loops: ReadLoops
) -> list[Turns]:
    rng = random.Random(SEED + batch)
    prompts = [random_prompt(rng, CONTEXT_TOKENS) for _ in range(batch)]
    turns = [Turns(side) for side in sides]
    first = [turn.side.begin(prompts) for turn in turns]
    for _ in range(num_rounds):
        for turn, token_ids in zip(turns, first, strict=True):
            _decode_round(turn, token_ids)
        loops.measure()
    return turns


def _decode_round(turn: Turns, token_ids: list[int]) -> None:
    turn.side.rewind()
    turn.answers.append(token_ids)
    for index in range(NUM_WARM_UP_STEPS + NUM_STEPS):
        started_s = clock.now_s()
        token_ids = turn.side.step(token_ids)
        if index >= NUM_WARM_UP_STEPS:
            turn.times_s.append(clock.now_s() - started_s)
        turn.answers.append(token_ids)


def _compared(what: str, turns: Sequence[Turns], bound: float) -> tuple[list[Figure], Bar]:
    names = (what, f"{what}, transformers")
    ours, theirs = (
        figure(name, turn.times_s, "s") for name, turn in zip(names, turns, strict=True)
    )
    return [ours, theirs], time_ratio_bar(what, ours, theirs, bound)


def _differing(batch: int, turns: Sequence[Turns]) -> Figure:
    ours, theirs = (turn.answers for turn in turns)
    num_tokens = sum(len(token_ids) for token_ids in ours)
    name = f"of {num_tokens} tokens at batch {batch}, not as transformers'"
    return figure(name, [num_differing(ours, theirs)], "tokens")


def _limit_outcome(loops: ReadLoops, num_bytes: float, step: Figure) -> tuple[list[Figure], Bar]:
    name, bytes_per_s = loops.best()
    limit_s = num_bytes / statistics.median(bytes_per_s)
    figures = [
        figure(f"read bandwidth of one thread ({name})", [b / 1e9 for b in bytes_per_s], "GB/s"),
        figure(f"time to read the {num_bytes / 1e6:.0f} MB of a step at batch 1", [limit_s], "s"),
    ]
    return figures, bandwidth_bar(limit_s, step)
