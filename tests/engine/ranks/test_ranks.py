"""Law 1 for several ranks: tokens equal generate()'s however model, request and KV are cut."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from engine.batch import BatchEntry
from engine.ranks.pipeline import MIN_MICRO_BATCH_TOKENS
from tests.engine.ranks.ranked import Ranked
from tests.engine.tiny import BLOCK_SIZE, NUM_BLOCKS, Answer, TinyModel, random_prompt, run_all

NUM_TOKENS = 12


@pytest.fixture(autouse=True)
def poisoned(ranked: Ranked) -> None:
    ranked.poison()


def oracle(model: TinyModel, answer: Answer) -> list[int]:
    return model.generate(answer.prompt, NUM_TOKENS)


def check(model: TinyModel, answers: Sequence[Answer]) -> None:
    for answer in answers:
        assert list(answer.output[:NUM_TOKENS]) == oracle(model, answer)


def test_chunks_and_answers_share_steps(ranked: Ranked, three_layers: TinyModel) -> None:
    shapes = [(5, 64), (33, 8), (130, 90), (2, 64), (120, 47), (16, 16)]
    answers = [
        Answer(random_prompt(length, seed=i), tuple(range(i, NUM_BLOCKS, len(shapes))), chunk)
        for i, (length, chunk) in enumerate(shapes)
    ]
    run_all(ranked.runner, answers, NUM_TOKENS)
    check(three_layers, answers)


@pytest.mark.parametrize("length", [1, 2 * MIN_MICRO_BATCH_TOKENS + 1, 257])
def test_a_prompt_in_one_step(ranked: Ranked, three_layers: TinyModel, length: int) -> None:
    """Long ones in several micro-batches, the last of which may be one token long."""
    answer = Answer(random_prompt(length, seed=length), tuple(range(40, 18, -1)))
    run_all(ranked.runner, [answer], NUM_TOKENS)
    check(three_layers, [answer])
    stages = {span.stage for span in ranked.forward.timeline}
    assert len(stages) == ranked.forward.layout.pp


def test_many_answers_are_cut_too(ranked: Ranked, three_layers: TinyModel) -> None:
    num_answers = 2 * MIN_MICRO_BATCH_TOKENS
    answers = [Answer(random_prompt(5, seed=i % 7), (i,)) for i in range(num_answers)]
    run_all(ranked.runner, answers, 4)
    want = [three_layers.generate(random_prompt(5, seed=i), 4) for i in range(7)]
    assert [list(answer.output) for answer in answers] == [want[i % 7] for i in range(num_answers)]


def test_a_shared_block_is_copied_on_write(ranked: Ranked, three_layers: TinyModel) -> None:
    """On every rank, before anything of the step is written."""
    donor = Answer(random_prompt(3 * BLOCK_SIZE, seed=4), (9, 7, 5, 3, 1))
    run_all(ranked.runner, [donor], NUM_TOKENS)
    half = 2 * BLOCK_SIZE + 7
    prompt = donor.prompt[:half] + random_prompt(60, seed=5)
    heir = Answer(prompt, (9, 7, 30, 31, 32, 33, 34), start=half)
    entry = replace(heir.next_entry(), copies=((5, 30),))
    heir.absorb(entry, ranked.runner.step([entry]).token_ids[0])
    run_all(ranked.runner, [donor, heir], NUM_TOKENS + 2)
    check(three_layers, [donor, heir])


def test_kv_moves_to_other_blocks_and_back(ranked: Ranked, three_layers: TinyModel) -> None:
    """As a swap or a handoff would move it, layer by layer."""
    answer = Answer(random_prompt(70, seed=6), (9, 7, 5, 3, 1, 0))
    run_all(ranked.runner, [answer], NUM_TOKENS // 2)
    cache, tokens = ranked.forward.kv_cache, range(answer.start)
    layers = [range(i, i + 1) for i in range(cache.num_layers)]
    saved = [bytes(cache.gather(layer, answer.block_ids, tokens)) for layer in layers]
    ranked.poison()
    answer.block_ids = (20, 23, 22, 40, 41, 42)
    for layer, payload in zip(layers, saved, strict=True):
        cache.scatter(layer, answer.block_ids, tokens, memoryview(payload))
    run_all(ranked.runner, [answer], NUM_TOKENS)
    check(three_layers, [answer])


def test_kv_is_what_one_rank_would_hold(ranked: Ranked, three_layers: TinyModel) -> None:
    prompt, table = random_prompt(100, seed=7), (9, 7, 5, 3, 1, 0, 2)
    caches = []
    for runner in (ranked.runner, three_layers.runner()):
        run_all(runner, [Answer(prompt, table)], 1)
        payload = runner.kv_cache.gather(range(3), table, range(len(prompt)))
        caches.append(np.frombuffer(payload, dtype=np.float32))
    np.testing.assert_allclose(caches[0], caches[1], rtol=1e-4, atol=1e-4)


def test_layers_are_told_in_order(ranked: Ranked) -> None:
    told: list[int] = []
    ranked.runner.step([Answer(random_prompt(9, seed=1), (0,)).next_entry()], told.append)
    assert told == [0, 1, 2]


def test_a_step_may_sample_nothing(ranked: Ranked) -> None:
    entry = Answer(random_prompt(9, seed=1), (0,), chunk=4).next_entry()
    assert entry.sample is None
    assert ranked.runner.step([entry]).token_ids == (None,)


MISTAKES = [
    # id               entry                                                              message
    ("no tokens", BatchEntry(key="x", token_ids=(), start=0, block_ids=(1,), sample=None), "input"),
    (
        "short table",
        BatchEntry(key="x", token_ids=(1,) * 17, start=0, block_ids=(1,), sample=None),
        "in 1 blocks of 16",
    ),
    (
        "no such block",
        BatchEntry(
            key="x", token_ids=(1,), start=0, block_ids=(1,), sample=None, copies=((9999, 1),)
        ),
        "cannot be copied",
    ),
]


@pytest.mark.parametrize(
    ("entry", "message"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_a_mistake_harms_no_later_step(
    ranked: Ranked, three_layers: TinyModel, entry: BatchEntry, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ranked.runner.step([entry])
    answer = Answer(random_prompt(9, seed=1), (0, 1, 2))
    run_all(ranked.runner, [answer], NUM_TOKENS)
    check(three_layers, [answer])


def test_warm_up_leaves_the_blocks_of_requests_alone(
    ranked: Ranked, three_layers: TinyModel
) -> None:
    answer = Answer(random_prompt(40, seed=1), (0, 1, 2, 63))
    run_all(ranked.runner, [answer], NUM_TOKENS // 2)
    ranked.runner.warm_up()
    run_all(ranked.runner, [answer], NUM_TOKENS)
    check(three_layers, [answer])
