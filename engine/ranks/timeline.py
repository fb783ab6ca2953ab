"""Shows when each rank of an instance computes which micro-batch of one prompt.

python -m engine.ranks.timeline --model-dir DIR --pp 2
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from core.config import EngineConfig
from core.errors import BatonError
from core.parallel import ParallelLayout
from core.request import SamplingParams, StopParams
from engine.batch import BatchEntry, SampleSpec
from engine.ranks.leader import RankedForward
from engine.ranks.spans import Span, duration_s, render
from engine.ranks.start import RankedRunner, start_ranks
from engine.runner import Runner

NUM_STEPS = 3
"""The first ones touch memory for the first time; the fastest is shown."""


def measure(
    model_dir: Path, layout: ParallelLayout, engine: EngineConfig, num_tokens: int
) -> tuple[Span, ...]:
    """When the ranks computed a prompt of `num_tokens` tokens in one step.

    Raises what `start_ranks` does.
    """
    num_blocks = -(-num_tokens // engine.block_size)
    engine = replace(engine, num_blocks=num_blocks)
    forward = start_ranks(model_dir, engine=engine, layout=layout, on_lost=_ignore)
    try:
        runner = Runner(forward, num_threads=engine.num_threads)
        entry = _prompt(num_tokens, forward.spec.vocab_size, num_blocks)
        return min((_timeline(runner, forward, entry) for _ in range(NUM_STEPS)), key=duration_s)
    finally:
        forward.close()


def _timeline(runner: RankedRunner, forward: RankedForward, entry: BatchEntry) -> tuple[Span, ...]:
    runner.step([entry])
    return forward.timeline


def _prompt(num_tokens: int, vocab_size: int, num_blocks: int) -> BatchEntry:
    token_ids = tuple(i % vocab_size for i in range(num_tokens))
    return BatchEntry(
        key="prompt",
        token_ids=token_ids,
        start=0,
        block_ids=range(num_blocks),
        sample=SampleSpec(
            sampling=SamplingParams(temperature=0),
            stop=StopParams(max_tokens=1),
            child_index=0,
            prompt_token_ids=token_ids,
            output_token_ids=(),
        ),
    )


def main() -> None:
    """Print one; an error of ours is one line on standard error and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m engine.ranks.timeline")
    parser.add_argument("--model-dir", required=True, type=Path)
    parser.add_argument("--tp", type=int, default=1, help="ranks that split each layer")
    parser.add_argument("--pp", type=int, default=2, help="stages that split the layers")
    parser.add_argument("--num-tokens", type=int, default=256, help="of the prompt")
    parser.add_argument("--num-threads", type=int, default=1, help="of each rank")
    given = parser.parse_args()
    engine = EngineConfig(num_threads=given.num_threads)
    layout = ParallelLayout(tp=given.tp, pp=given.pp)
    try:
        sys.stdout.write(render(measure(given.model_dir, layout, engine, given.num_tokens)) + "\n")
    except BatonError as error:
        sys.exit(str(error))


def _ignore(_reason: str) -> None:
    """The step that is under way says it."""


if __name__ == "__main__":
    main()
