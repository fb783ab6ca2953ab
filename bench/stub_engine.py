"""An engine that computes nothing and takes as long as it is told: everything around it is real.

It sleeps in the step thread, as a thread that waits for a device does: the processor is free.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from core.ids import Fingerprint
from core.model_spec import ModelSpec
from deploy.assembly import Compute
from engine.batch import BatchEntry, StepResult

VOCAB_SIZE = 512
MODEL = ModelSpec(
    name="stub",
    architecture="StubForCausalLM",
    num_layers=1,
    num_query_heads=1,
    num_kv_heads=1,
    head_dim=2,
    hidden_size=2,
    vocab_size=VOCAB_SIZE,
    max_context_tokens=32_768,
    eos_token_ids=(),
    dtype="float32",
    weights_digest="stub",
)
ROW_BYTES = MODEL.kv_bytes_per_token // MODEL.num_layers // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Seconds of a step: the larger base, and what each token and answer adds."""

    prefill_base_s: float = 0.005
    prefill_token_s: float = 0.0
    decode_base_s: float = 0.01
    answer_s: float = 0.0
    context_token_s: float = 0.0

    def of(self, entries: Sequence[BatchEntry]) -> float:
        """One batch."""
        prompts = [e for e in entries if is_prompt(e)]
        answers = [e for e in entries if not is_prompt(e)]
        base_s = max(
            self.prefill_base_s if prompts else 0.0, self.decode_base_s if answers else 0.0
        )
        return (
            base_s
            + self.prefill_token_s * sum(len(e.token_ids) for e in prompts)
            + self.answer_s * len(answers)
            + self.context_token_s * sum(e.stop for e in answers)
        )


def is_prompt(entry: BatchEntry) -> bool:
    """Whether a chunk of a prompt is computed, rather than the next token of an answer."""
    return entry.sample is None or not entry.sample.output_token_ids or len(entry.token_ids) > 1


class StubRunner:
    """Implements StepRunner."""

    def __init__(self, cost: StepCost) -> None:
        self._cost = cost

    def step(
        self, entries: Sequence[BatchEntry], on_layer: Callable[[int], None] | None = None
    ) -> StepResult:
        """Sleep, then sample what only the position decides."""
        time_s = self._cost.of(entries)
        time.sleep(time_s)
        if on_layer is not None:
            for layer in range(MODEL.num_layers):
                on_layer(layer)
        return StepResult(
            token_ids=tuple(None if e.sample is None else _token(e) for e in entries),
            logprobs=(None,) * len(entries),
            compute_s=time_s,
        )


class StubStore:
    """Implements KvStore over bytes [layer][K, V][slot]."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._data = np.zeros((MODEL.num_layers, 2, num_blocks * block_size, ROW_BYTES), np.uint8)

    def gather(self, layers: range, block_ids: Sequence[int], tokens: range) -> memoryview:
        """A copy."""
        rows = self._data[layers.start : layers.stop][:, :, self._slots(block_ids, tokens)]
        return np.ascontiguousarray(rows).reshape(-1).data

    def gather_into(
        self, layers: range, block_ids: Sequence[int], tokens: range, out: memoryview
    ) -> None:
        """A copy, into `out`."""
        out[:] = self.gather(layers, block_ids, tokens)

    def scatter(
        self, layers: range, block_ids: Sequence[int], tokens: range, payload: memoryview
    ) -> None:
        """The reverse of `gather`."""
        shape = (len(layers), 2, len(tokens), ROW_BYTES)
        given = np.frombuffer(payload, np.uint8).reshape(shape)
        self._data[layers.start : layers.stop, :, self._slots(block_ids, tokens)] = given

    def _slots(self, block_ids: Sequence[int], tokens: range) -> np.ndarray[Any, Any]:
        at = np.arange(tokens.start, tokens.stop)
        size = self._block_size
        return np.asarray(block_ids)[at // size] * size + at % size


def load_stub(cost: StepCost, num_blocks: int, block_size: int) -> Compute:
    """In place of a model."""
    return Compute(
        model=MODEL,
        runner=StubRunner(cost),
        store=StubStore(num_blocks, block_size),
        fingerprint=Fingerprint("stub"),
    )


def write_stub_model(folder: Path) -> Path:
    """What a router reads of the model: words `w1` … are the tokens."""
    vocab = {f"w{i}": i for i in range(VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }} {% endfor %}"
    )
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 0}))
    return folder


def _token(entry: BatchEntry) -> int:
    assert entry.sample is not None, "asked for by the caller"
    return 1 + entry.sample.position % (VOCAB_SIZE - 1)
