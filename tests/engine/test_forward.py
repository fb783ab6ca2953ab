"""Which steps are replayed, and that replaying changes no token: with a recorder that computes
again, over the CPU's own decode kernel."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch

from engine.batch import BatchEntry
from engine.forward import ModelForward, WarmsUp
from engine.model import load_model
from engine.runner import LocalRunner, Runner, model_forward
from tests.engine.cuda.recorders import Again
from tests.engine.tiny import (
    BLOCK_SIZE,
    NUM_BLOCKS,
    Answer,
    TinyModel,
    random_prompt,
    run_all,
    run_step,
)

MAX_ROWS = 5
NUM_BUCKETS = 4
NUM_TOKENS = 12


@pytest.fixture
def recorder() -> Again:
    return Again()


@pytest.fixture
def runner(tiny: TinyModel, recorder: Again) -> LocalRunner:
    """Warmed up, and with NaN wherever nothing was written."""
    forward = model_forward(
        tiny.loaded,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        max_graph_rows=MAX_ROWS,
        recorder=recorder,
    )
    runner = Runner(forward, num_threads=1)
    runner.warm_up()
    runner.kv_cache.data.fill_(float("nan"))
    return runner


def answers(lengths: Iterable[int]) -> list[Answer]:
    """Over blocks dealt out in turn."""
    return [
        Answer(random_prompt(length, seed=i), tuple(range(i, NUM_BLOCKS, 6)))
        for i, length in enumerate(lengths)
    ]


def test_decode_steps_are_replayed_and_give_the_same_tokens(
    tiny: TinyModel, runner: LocalRunner, recorder: Again
) -> None:
    running = answers([5, 33, 90])
    run_step(runner, running[:2])
    run_step(runner, running)
    assert recorder.num_replays == 0, "both had chunks"
    run_all(runner, running, NUM_TOKENS)
    assert recorder.num_replays == NUM_TOKENS - 1
    want = [tiny.generate(answer.prompt, NUM_TOKENS) for answer in running]
    assert [list(answer.output) for answer in running] == want


def test_warm_up_records_and_leaves_the_allocators_blocks_alone(
    tiny: TinyModel, recorder: Again
) -> None:
    forward = model_forward(
        tiny.loaded, num_blocks=MAX_ROWS, block_size=BLOCK_SIZE, recorder=recorder
    )
    runner = Runner(forward, num_threads=1)
    (answer,) = answers([4])
    run_step(runner, [answer])
    run_step(runner, [answer])
    assert recorder.num_recorded == recorder.num_replays == 0
    runner.kv_cache.data.zero_()
    runner.warm_up()
    assert recorder.num_recorded == NUM_BUCKETS, "no more rows than there are blocks"
    assert not runner.kv_cache.data[:, :, : MAX_ROWS * BLOCK_SIZE].any()


NOT_REPLAYED = ["a listener", "too many rows", "nothing sampled"]


@pytest.mark.parametrize("why", NOT_REPLAYED)
def test_what_is_computed_as_it_comes(why: str, runner: LocalRunner, recorder: Again) -> None:
    running = answers([3] * (MAX_ROWS + 1))
    run_step(runner, running)
    entries = [answer.next_entry() for answer in running]
    layers: list[int] = []
    if why == "a listener":
        runner.step(entries[:2], layers.append)
        assert layers == [0, 1]
    elif why == "too many rows":
        runner.step(entries)
    else:
        result = runner.step([entries[0], replace(entries[1], sample=None)])
        assert result.token_ids[1] is None
    assert recorder.num_replays == 0


def test_blocks_are_copied_before_a_replay(
    tiny: TinyModel, runner: LocalRunner, recorder: Again
) -> None:
    """The second takes over what the first wrote, and both go on."""
    prompt = random_prompt(20, seed=4)
    first, second = Answer(prompt, (3, 1)), Answer(prompt, (3, 2), start=20)
    run_step(runner, [first])
    second.output = first.output
    entries = [first.next_entry(), replace(second.next_entry(), copies=((1, 2),))]
    result = runner.step(entries)
    assert recorder.num_replays == 1
    for answer, entry, token_id in zip((first, second), entries, result.token_ids, strict=True):
        answer.absorb(entry, token_id)
    run_all(runner, [first, second], NUM_TOKENS)
    assert list(first.output) == list(second.output) == tiny.generate(prompt, NUM_TOKENS)


def one(start: int, **changes: object) -> BatchEntry:
    answer = Answer(random_prompt(start + 1, seed=1), (1, 2), start=start)
    return replace(answer.next_entry(), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (one(16, block_ids=(1,)), "tokens 16 to 17 in 1 blocks of 16"),
        (replace(one(5), start=-1), "tokens -1 to 0"),
        (one(5, copies=[(9999, 2)]), "block 9999 of"),
    ],
    ids=["short block table", "negative start", "copy from nowhere"],
)
def test_impossible_batches_are_refused_and_copy_nothing(
    runner: LocalRunner, recorder: Again, bad: BatchEntry, message: str
) -> None:
    runner.kv_cache.data.normal_()
    before = runner.kv_cache.data.clone()
    with pytest.raises(ValueError, match=message):
        runner.step([one(5, copies=[(5, 1)]), bad])
    assert torch.equal(runner.kv_cache.data, before)
    assert recorder.num_replays == 0


WITHOUT = [
    # id                 dtype      scratch rows
    ("no rows", "float32", 1, 0),
    ("no scratch block", "float32", 0, MAX_ROWS),
    ("no decode kernel", "bfloat16", 1, MAX_ROWS),
]


@pytest.mark.parametrize(
    ("dtype", "num_scratch_blocks", "max_rows"),
    [w[1:] for w in WITHOUT],
    ids=[w[0] for w in WITHOUT],
)
def test_where_nothing_is_recorded(
    tiny: TinyModel, recorder: Again, dtype: str, num_scratch_blocks: int, max_rows: int
) -> None:
    forward = ModelForward(
        load_model(tiny.directory, dtype=dtype),
        num_blocks=4,
        block_size=BLOCK_SIZE,
        num_scratch_blocks=num_scratch_blocks,
        max_graph_rows=max_rows,
        recorder=recorder,
    )
    assert isinstance(forward, WarmsUp)
    forward.warm_up()
    assert recorder.num_recorded == 0
