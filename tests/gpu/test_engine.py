"""The same laws on a CUDA device."""

import pytest
import torch

from engine.model import LoadedModel, load_model
from engine.runner import LocalRunner, one_rank
from tests.engine.tiny import BLOCK_SIZE, Answer, TinyModel, random_prompt, run_all, run_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

NUM_TOKENS = 24


@pytest.fixture(scope="module")
def on_gpu(tiny: TinyModel) -> LoadedModel:
    return load_model(tiny.directory, device="cuda")


def gpu_runner(model: LoadedModel) -> LocalRunner:
    return one_rank(model, num_blocks=64, block_size=BLOCK_SIZE, num_threads=1)


def answers() -> list[Answer]:
    shapes = [(5, 64), (33, 8), (90, 32), (2, 64), (120, 17), (16, 16)]
    return [
        Answer(random_prompt(length, seed=i), tuple(range(i, 64, len(shapes))), chunk)
        for i, (length, chunk) in enumerate(shapes)
    ]


def test_tokens_equal_generate_on_the_cpu(tiny: TinyModel, on_gpu: LoadedModel) -> None:
    running = answers()
    runner = gpu_runner(on_gpu)
    runner.warm_up()
    run_all(runner, running, NUM_TOKENS)
    want = [tiny.generate(answer.prompt, NUM_TOKENS) for answer in running]
    assert [list(answer.output) for answer in running] == want


def test_layers_are_readable_when_reported(on_gpu: LoadedModel) -> None:
    prompt = random_prompt(30, seed=6)
    runner = gpu_runner(on_gpu)
    seen: dict[int, bytes] = {}

    def on_layer(layer: int) -> None:
        layers = range(layer, layer + 1)
        seen[layer] = bytes(runner.kv_cache.gather(layers, (3, 1), range(30)))

    runner.step([Answer(prompt, (3, 1)).next_entry()], on_layer)
    assert list(seen) == [0, 1]
    for layer, payload in seen.items():
        after = runner.kv_cache.gather(range(layer, layer + 1), (3, 1), range(30))
        assert payload == bytes(after)
        assert any(payload)


def test_kv_moves_from_device_to_host(tiny: TinyModel, on_gpu: LoadedModel) -> None:
    prompt = random_prompt(53, seed=5)
    answer = Answer(prompt, (4, 2, 8, 6))
    source, target = gpu_runner(on_gpu), tiny.runner(block_size=8)
    run_step(source, [answer])
    payload = source.kv_cache.gather(range(2), answer.block_ids, range(53))
    answer.block_ids = tuple(range(40, 20, -1))
    target.kv_cache.scatter(range(2), answer.block_ids, range(53), payload)
    run_all(target, [answer], NUM_TOKENS)
    assert list(answer.output) == tiny.generate(prompt, NUM_TOKENS)
