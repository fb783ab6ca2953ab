"""What the GPU path reaches of the device's limits, both measured in the same run.

Workload, fixed here: a model of the shape of Llama 3 8B with random bfloat16 weights made on the
device; no file is read. *Decode*: steps of 1 and of 64 answers with 1,024 tokens of context each,
against the time that reading the weights and their KV takes at the bandwidth of a copy. *Prefill*:
a prompt of 2,048 tokens in one step, against the time that its multiplications take at the rate of
a large matrix product. Steps are timed as instances run them, sampling included.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from bench.asking import random_prompt
from bench.report import Bar, Figure, Report, figure
from core.model_spec import ModelSpec
from core.request import SamplingParams, StopParams
from engine import attention
from engine.batch import BatchEntry, SampleSpec
from engine.model import LoadedModel, make_fast, register_attention
from engine.runner import LocalRunner, one_rank

Progress = Callable[[str], None]

DEVICE = "cuda"
SEED = 20_263
QUICK = 3
"""--quick divides repetitions by this."""

SHAPE: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500_000.0,
}
BLOCK_SIZE = 16
BATCHES = (1, 64)
CONTEXT_TOKENS = 1024
PROMPT_TOKENS = 2048
NUM_STEPS = 30
NUM_WARM_UPS = 3

COPY_BYTES = 4 * 1024**3
MATRIX_SIZE = 8192

MIN_BANDWIDTH_SHARE = 0.75
MIN_MATMUL_SHARE = 0.6


def measure(*, quick: bool, on_progress: Progress) -> Report:
    """Run everything; see the module's text. Ends the process where there is no CUDA device."""
    if not torch.cuda.is_available():
        raise SystemExit("bench gpu needs a CUDA device, and torch sees none")
    num_steps = NUM_STEPS // (QUICK if quick else 1)
    on_progress("the device's own limits")
    bandwidth, rate = _bandwidth(num_steps), _matmul_rate(num_steps)
    on_progress("a model of 8 billion parameters")
    model = _model()
    num_tokens = max(max(BATCHES) * (CONTEXT_TOKENS + 1), PROMPT_TOKENS)
    runner = one_rank(
        model,
        num_blocks=-(-num_tokens // BLOCK_SIZE) + max(BATCHES),
        block_size=BLOCK_SIZE,
        num_threads=1,
    )
    runner.warm_up()
    figures: list[Figure] = [bandwidth, rate]
    bars: list[Bar] = []
    for batch in BATCHES:
        on_progress(f"decode, {batch} answers")
        took = _steps(runner, _answers(batch), num_steps, f"decode step of {batch}")
        figures.append(took)
        limit_s = _decode_bytes(model, batch) / bandwidth.median
        bars.append(_bar(f"decode of {batch}", limit_s, took, MIN_BANDWIDTH_SHARE))
    on_progress("prefill")
    took = _steps(runner, [_entry(0, PROMPT_TOKENS, 0)], num_steps, f"{PROMPT_TOKENS}-token prompt")
    figures.append(took)
    limit_s = _prefill_flops(model) / rate.median
    bars.append(_bar("prefill", limit_s, took, MIN_MATMUL_SHARE))
    return Report(name="gpu", figures=tuple(figures), bars=tuple(bars))


# --- limits -----------------------------------------------------------------------------------


def _bandwidth(num_steps: int) -> Figure:
    """Bytes read and written by a copy larger than any cache."""
    source = torch.ones(COPY_BYTES // 4, device=DEVICE)
    target = torch.empty_like(source)
    times_s = _device_times_s(lambda: target.copy_(source), num_steps)
    return figure("copy", (2 * COPY_BYTES / time_s for time_s in times_s), "B/s")


def _matmul_rate(num_steps: int) -> Figure:
    """On random numbers: zeros need less power, and run faster."""
    left, right = (
        torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=DEVICE, dtype=torch.bfloat16) for _ in range(2)
    )
    times_s = _device_times_s(lambda: left @ right, num_steps)
    return figure("matrix product", (2 * MATRIX_SIZE**3 / time_s for time_s in times_s), "FLOP/s")


def _device_times_s(work: Callable[[], object], num_steps: int) -> Iterator[float]:
    for step in range(NUM_WARM_UPS + num_steps):
        begun, ended = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        begun.record()
        work()
        ended.record()
        ended.synchronize()
        if step >= NUM_WARM_UPS:
            yield begun.elapsed_time(ended) / 1000


# --- the model --------------------------------------------------------------------------------


def _model() -> LoadedModel:
    config = LlamaConfig(**SHAPE)
    register_attention()
    with torch.device(DEVICE):
        made: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.bfloat16, attn_implementation=attention.NAME
        )
    module = made.eval().requires_grad_(False)
    make_fast(module, DEVICE)
    return LoadedModel(spec=_spec(config), module=module, device=DEVICE)


def _spec(config: LlamaConfig) -> ModelSpec:
    return ModelSpec(
        name="llama-8b-random",
        architecture="LlamaForCausalLM",
        num_layers=config.num_hidden_layers,
        num_query_heads=config.num_attention_heads,
        num_kv_heads=SHAPE["num_key_value_heads"],
        head_dim=config.hidden_size // config.num_attention_heads,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        max_context_tokens=SHAPE["max_position_embeddings"],
        eos_token_ids=(),
        dtype="bfloat16",
        weights_digest="",
        window_tokens=None,
    )


def _layer_parameters(model: LoadedModel) -> int:
    """Without the vocabulary's two matrices."""
    total = sum(parameter.numel() for parameter in model.module.parameters())
    return total - 2 * model.spec.vocab_size * model.spec.hidden_size


def _decode_bytes(model: LoadedModel, batch: int) -> int:
    """Read by a step: the weights but for the embedding, and the KV of every answer."""
    spec = model.spec
    weights = _layer_parameters(model) + spec.vocab_size * spec.hidden_size
    kv = batch * (CONTEXT_TOKENS + 1) * 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim
    return 2 * (weights + kv)


def _prefill_flops(model: LoadedModel) -> int:
    """Of the layers' products and of causal attention; the head computes one row."""
    spec = model.spec
    scores = spec.num_layers * spec.num_query_heads * spec.head_dim * PROMPT_TOKENS**2
    head = 2 * spec.vocab_size * spec.hidden_size
    return 2 * _layer_parameters(model) * PROMPT_TOKENS + 2 * scores + head


# --- steps ------------------------------------------------------------------------------------


def _answers(batch: int) -> list[BatchEntry]:
    num_blocks = -(-(CONTEXT_TOKENS + 1) // BLOCK_SIZE)
    return [_entry(CONTEXT_TOKENS, 1, i * num_blocks) for i in range(batch)]


def _entry(start: int, num_tokens: int, first_block: int) -> BatchEntry:
    num_blocks = -(-(start + num_tokens) // BLOCK_SIZE)
    return BatchEntry(
        key=f"{first_block}",
        token_ids=random_prompt(random.Random(SEED + first_block), num_tokens),
        start=start,
        block_ids=tuple(range(first_block, first_block + num_blocks)),
        sample=SampleSpec(
            sampling=SamplingParams(temperature=0),
            stop=StopParams(max_tokens=2),
            child_index=0,
            prompt_token_ids=(),
            output_token_ids=(),
        ),
    )


def _steps(runner: LocalRunner, entries: Sequence[BatchEntry], num_steps: int, name: str) -> Figure:
    for _ in range(NUM_WARM_UPS):
        runner.step(entries)
    return figure(name, [runner.step(entries).compute_s for _ in range(num_steps)], "s")


def _bar(name: str, limit_s: float, took: Figure, bound: float) -> Bar:
    return Bar(
        name=f"{name}: share of the limit",
        value=limit_s / took.median,
        bound=bound,
        unit="of 1",
        at_most=False,
    )
