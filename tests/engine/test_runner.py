"""Law 1 for one rank: tokens equal generate()'s however a request is cut, batched and stored."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.clock import ManualClock
from core.errors import BatonError
from core.request import SamplingParams
from engine.batch import BatchEntry
from engine.runner import one_rank
from tests.engine.tiny import (
    BLOCK_SIZE,
    GREEDY,
    NUM_BLOCKS,
    Answer,
    TinyModel,
    random_prompt,
    run_all,
    run_step,
    sample_spec,
)

NUM_TOKENS = 24

CUTS = [
    # id                        prompt chunk block_ids
    ("token by token", 37, 1, (0, 1, 2, 3)),
    ("odd chunks over block ends", 100, 7, (9, 8, 7, 6, 5, 4, 3, 2)),
    ("chunks of whole blocks", 150, 64, (30, 3, 31, 4, 32, 5, 33, 6, 34, 7, 35)),
    ("whole, in one run", 150, 150, tuple(range(20, 31))),
    ("whole, scattered", 150, 150, (63, 0, 62, 1, 61, 2, 60, 3, 59, 4, 58)),
    ("one-token prompt", 1, 64, (5, 3)),
    ("chunk leaves one token", 65, 64, (5, 3, 9, 11, 13, 2)),
]


@pytest.mark.parametrize(
    ("length", "chunk", "block_ids"), [c[1:] for c in CUTS], ids=[c[0] for c in CUTS]
)
def test_tokens_equal_generate(
    tiny: TinyModel, length: int, chunk: int, block_ids: tuple[int, ...]
) -> None:
    prompt = random_prompt(length, seed=length)
    answer = Answer(prompt, block_ids, chunk)
    run_all(tiny.runner(), [answer], NUM_TOKENS)
    assert list(answer.output) == tiny.generate(prompt, NUM_TOKENS)
    assert len(set(answer.output)) > NUM_TOKENS // 2, "the model repeats itself: a weak oracle"


def mixed_answers() -> list[Answer]:
    """Different lengths and chunks; blocks dealt out in turn, so that no table is contiguous."""
    shapes = [(5, 64), (33, 8), (90, 32), (2, 64), (120, 17), (16, 16)]
    return [
        Answer(random_prompt(length, seed=i), tuple(range(i, NUM_BLOCKS, len(shapes))), chunk)
        for i, (length, chunk) in enumerate(shapes)
    ]


def oracle_outputs(tiny: TinyModel, answers: Sequence[Answer]) -> list[list[int]]:
    return [tiny.generate(answer.prompt, NUM_TOKENS) for answer in answers]


@pytest.mark.parametrize("block_size", [1, 7, BLOCK_SIZE])
def test_prefill_and_decode_entries_share_steps(tiny: TinyModel, block_size: int) -> None:
    answers = mixed_answers()
    for i, answer in enumerate(answers):
        num_blocks = -(-(len(answer.prompt) + NUM_TOKENS) // block_size)
        answer.block_ids = tuple(i + len(answers) * n for n in range(num_blocks))
    runner = tiny.runner(num_blocks=1000, block_size=block_size)
    run_all(runner, answers, NUM_TOKENS)
    assert [list(answer.output) for answer in answers] == oracle_outputs(tiny, answers)


def test_requests_join_and_leave_a_running_batch(tiny: TinyModel) -> None:
    answers = mixed_answers()
    runner = tiny.runner()
    for num_running in range(1, len(answers) + 1):
        run_step(runner, answers[:num_running])
    run_step(runner, list(reversed(answers)))
    run_all(runner, answers, NUM_TOKENS)
    want = oracle_outputs(tiny, answers)
    assert [list(answer.output[:NUM_TOKENS]) for answer in answers] == want


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_schedule_gives_the_same_tokens(tiny: TinyModel, data: st.DataObject) -> None:
    """Requests of any chunking, in any subset per step, over any blocks."""
    blocks = data.draw(st.permutations(range(NUM_BLOCKS)))
    lengths = data.draw(st.lists(st.sampled_from([1, 9, 16, 40]), min_size=1, max_size=4))
    answers = [
        Answer(random_prompt(length, seed=i), tuple(blocks[i * 4 : i * 4 + 4]))
        for i, length in enumerate(lengths)
    ]
    runner = tiny.runner()
    while running := [answer for answer in answers if len(answer.output) < 6]:
        chosen = data.draw(st.lists(st.sampled_from(running), min_size=1, unique_by=id))
        for answer in chosen:
            answer.chunk = data.draw(st.integers(1, 20))
        run_step(runner, chosen)
    assert [list(answer.output) for answer in answers] == [
        tiny.generate(answer.prompt, 6) for answer in answers
    ]


def test_copies_beside_running_steps_disturb_neither(tiny: TinyModel) -> None:
    runner = tiny.runner()
    leased = Answer(random_prompt(60, seed=9), (63, 50, 62, 51))
    run_step(runner, [leased])
    before = bytes(runner.kv_cache.gather(range(2), leased.block_ids, range(60)))
    answer = Answer(random_prompt(40, seed=8), (1, 3, 5, 7))

    def copy() -> bool:
        for _ in range(200):
            got = runner.kv_cache.gather(range(2), leased.block_ids, range(60))
            runner.kv_cache.scatter(range(2), (40, 42, 44, 46), range(60), got)
            if bytes(got) != before:
                return False
        return bytes(runner.kv_cache.gather(range(2), (40, 42, 44, 46), range(60))) == before

    with ThreadPoolExecutor() as pool:
        copies = [pool.submit(copy)]
        run_all(runner, [answer], NUM_TOKENS)
        assert all(done.result(timeout=30.0) for done in copies)
    assert list(answer.output) == tiny.generate(answer.prompt, NUM_TOKENS)


def test_dead_requests_poison_nobody(tiny: TinyModel) -> None:
    """NaN left in reused blocks, in others' blocks and in the scratch blocks changes nothing."""
    answers = mixed_answers()
    runner = tiny.runner()
    runner.kv_cache.data.fill_(float("nan"))
    run_all(runner, answers, NUM_TOKENS)
    assert [list(answer.output) for answer in answers] == oracle_outputs(tiny, answers)


def test_planted_wrong_bytes_change_the_tokens(tiny: TinyModel) -> None:
    prompt = random_prompt(40, seed=3)
    answer = Answer(prompt, (4, 2, 8, 6))
    runner = tiny.runner()
    run_step(runner, [answer])
    runner.kv_cache.data[:, :, 2 * BLOCK_SIZE] += 3.0
    run_all(runner, [answer], NUM_TOKENS)
    assert list(answer.output) != tiny.generate(prompt, NUM_TOKENS)


def test_a_request_continues_on_another_runner(tiny: TinyModel) -> None:
    """The handoff in small: KV of the prompt moves, block tables and block sizes differ."""
    prompt = random_prompt(53, seed=5)
    answer = Answer(prompt, (4, 2, 8, 6))
    source, target = tiny.runner(), tiny.runner(block_size=8)
    run_step(source, [answer])
    moved_to = tuple(range(40, 20, -1))
    for layer in range(2):
        layers = range(layer, layer + 1)
        for tokens in (range(20), range(20, 53)):
            payload = source.kv_cache.gather(layers, answer.block_ids, tokens)
            target.kv_cache.scatter(layers, moved_to, tokens, payload)
    answer.block_ids = moved_to
    run_all(target, [answer], NUM_TOKENS)
    assert list(answer.output) == tiny.generate(prompt, NUM_TOKENS)


def test_layers_are_reported_when_their_kv_is_written(tiny: TinyModel) -> None:
    prompt = random_prompt(30, seed=6)
    runner = tiny.runner()
    whole = tiny.runner()
    run_step(whole, [Answer(prompt, (3, 1))])
    seen: list[int] = []

    def on_layer(layer: int) -> None:
        seen.append(layer)
        args = range(layer, layer + 1), (3, 1), range(30)
        got, want = runner.kv_cache.gather(*args), whole.kv_cache.gather(*args)
        assert got.tobytes() == want.tobytes()
        later = runner.kv_cache.data[layer + 1 :]
        assert not later.any()

    runner.step([Answer(prompt, (3, 1)).next_entry()], on_layer)
    assert seen == [0, 1]


def test_on_layer_failure_reaches_the_caller(tiny: TinyModel) -> None:
    def on_layer(_layer: int) -> None:
        raise BatonError("carrier gone")

    runner = tiny.runner()
    entry = Answer(random_prompt(9, seed=1), (3, 1)).next_entry()
    with pytest.raises(BatonError, match="carrier gone"):
        runner.step([entry], on_layer)
    assert runner.step([entry]).token_ids[0] is not None


def test_blocks_are_copied_before_anything_is_computed(tiny: TinyModel) -> None:
    """The first request goes on writing into a block that the second took over in part."""
    runner = tiny.runner()
    prompt = random_prompt(40, seed=12)
    first = Answer(prompt, (3, 1, 2, 4))
    run_step(runner, [first])
    second = Answer(prompt[:36] + random_prompt(9, seed=13), (3, 1, 7, 8, 9), start=36)
    entries = [first.next_entry(), replace(second.next_entry(), copies=((2, 7),))]
    for answer, entry, token_id in zip(
        (first, second), entries, runner.step(entries).token_ids, strict=True
    ):
        answer.absorb(entry, token_id)
    run_all(runner, [first, second], NUM_TOKENS)
    assert [list(a.output[:NUM_TOKENS]) for a in (first, second)] == oracle_outputs(
        tiny, [first, second]
    )


def test_a_refused_batch_copies_nothing(tiny: TinyModel) -> None:
    runner = tiny.runner()
    runner.kv_cache.data.normal_()
    before = runner.kv_cache.data.clone()
    with pytest.raises(ValueError, match="in 1 blocks of 16"):
        runner.step([bad_entry(copies=((5, 1),)), bad_entry(block_ids=(1,))])
    assert torch.equal(runner.kv_cache.data, before)


def test_warm_up_leaves_the_allocators_blocks_alone(tiny: TinyModel) -> None:
    runner = tiny.runner()
    runner.warm_up()
    assert not runner.kv_cache.data[:, :, : NUM_BLOCKS * BLOCK_SIZE].any()


def test_step_reports_its_duration_and_logprobs(tiny: TinyModel) -> None:
    prompt = random_prompt(12, seed=2)
    runner = one_rank(
        tiny.loaded, num_blocks=4, block_size=16, num_threads=1, clock=ManualClock(5.0)
    )
    asking = sample_spec(prompt, sampling=replace(GREEDY, num_logprobs=0))
    result = runner.step([replace(Answer(prompt, (3, 1)).next_entry(), sample=asking)])
    with torch.inference_mode():
        want = tiny.oracle(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    assert result.compute_s == 0.0
    token_id = result.token_ids[0]
    assert token_id is not None
    told = result.logprobs[0]
    assert told is not None
    assert told.logprob == pytest.approx(float(want[token_id]), abs=1e-4)


def test_sampled_tokens_do_not_depend_on_the_batch(tiny: TinyModel) -> None:
    sampling = SamplingParams(temperature=1.5, top_p=0.95, seed=11)
    entries = [
        replace(
            Answer(random_prompt(10 + i, seed=i), (2 * i, 2 * i + 1)).next_entry(),
            sample=sample_spec(sampling=sampling, child_index=i),
        )
        for i in range(8)
    ]
    together = tiny.runner().step(entries).token_ids
    backwards = tiny.runner().step(entries[::-1]).token_ids
    alone = [tiny.runner().step([entry]).token_ids[0] for entry in entries]
    assert list(together) == list(backwards[::-1]) == alone


def bad_entry(**changes: object) -> BatchEntry:
    entry = Answer(random_prompt(20, seed=1), (1, 2)).next_entry()
    return replace(entry, **changes)  # type: ignore[arg-type]


BAD_BATCHES = [
    ("no entry", [], "at least one entry"),
    ("no token", [bad_entry(token_ids=())], "entry request: no input tokens"),
    ("short block table", [bad_entry(block_ids=(1,))], "tokens 0 to 20 in 1 blocks of 16"),
    ("negative start", [bad_entry(start=-1)], "tokens -1 to 19"),
    ("negative rest", [bad_entry(kv_start=-1)], "cached tokens -1 to 0 are no range"),
    ("forgot what all see", [bad_entry(start=9, kv_start=1)], "before 1 are gone, but token 9 "),
    ("copy from nowhere", [bad_entry(copies=[(9999, 1)])], "block 9999 of"),
    ("two copies into one", [bad_entry(copies=[(3, 1), (4, 1)])], "several blocks copied into"),
]


@pytest.mark.parametrize(
    ("entries", "message"), [b[1:] for b in BAD_BATCHES], ids=[b[0] for b in BAD_BATCHES]
)
def test_impossible_batches_are_refused(
    tiny: TinyModel, entries: list[BatchEntry], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.runner().step(entries)
