"""The model of scripted instances: every token is a function of the request, as in the real thing.

So any failover can be checked token by token.
"""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from core.request import TokenLogprobs
from rpc.convert import logprobs_to_pb
from rpc.pb import types_pb2, workers_pb2

VOCAB_SIZE = 512
EOS = 0
MODEL = "fake"
MAX_CONTEXT = 4096

Work = workers_pb2.WorkRequest


def token_at(work: Work, position: int) -> int:
    """The output token at one position: never EOS, different for neighbours, seeds and children."""
    key = sum(work.prompt_token_ids) * 31 + work.sampling.seed % 97 + work.child_index * 53
    return 1 + (key + position * position * 7 + position * 11) % (VOCAB_SIZE - 1)


def logprobs_at(work: Work, position: int) -> types_pb2.TokenLogprobs | None:
    """What goes with that token; None when nobody asked."""
    if not work.sampling.HasField("num_logprobs"):
        return None
    [told] = expected_logprobs([token_at(work, position)], work.sampling.num_logprobs)
    return logprobs_to_pb(told)


def expected_logprobs(token_ids: Sequence[int], num_top: int) -> list[TokenLogprobs]:
    """Of any answer: a function of its tokens, and exact as 32-bit floats."""
    return [
        TokenLogprobs(-i / 4, tuple(((i + n) % VOCAB_SIZE, -n / 8) for n in range(num_top)))
        for i in token_ids
    ]


def finish_at(work: Work, position: int) -> "types_pb2.FinishReason.ValueType":
    """Whether the answer ends there."""
    token_id = token_at(work, position)
    if token_id in work.stop.stop_token_ids and position + 1 > work.stop.min_tokens:
        return types_pb2.FINISH_REASON_STOP
    if position + 1 >= work.stop.max_tokens:
        return types_pb2.FINISH_REASON_LENGTH
    return types_pb2.FINISH_REASON_UNSPECIFIED


def expected(prompt: Sequence[int], num: int, *, seed: int = 0, child: int = 0) -> list[int]:
    """The tokens of an answer without faults."""
    sampling = types_pb2.SamplingParams(seed=seed)
    work = Work(prompt_token_ids=prompt, sampling=sampling, child_index=child)
    return [token_at(work, position) for position in range(num)]


def write_tokenizer(folder: Path) -> Path:
    """Words `w1` … as tokens; id 0 ends an answer."""
    vocab = {f"w{i}": i for i in range(VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    (folder / "config.json").write_text(f'{{"eos_token_id": {EOS}}}')
    return folder
