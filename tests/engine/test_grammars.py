"""A constrained answer matches its grammar, whatever it is batched with and wherever it goes on."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pytest
import torch

from core.request import Grammar, GrammarKind, SamplingParams, StopParams
from deploy.tiny_model import write_tiny_llama
from engine.batch import BatchEntry
from engine.grammars import MAX_STATES, GrammarStates
from engine.runner import LocalRunner, one_rank
from tests.engine.tiny import BLOCK_SIZE, GREEDY, Answer, TinyModel, random_prompt, sample_spec
from text.grammar import GrammarCompiler
from text.tokenizer import Tokenizer

VOCAB_SIZE = 300
EOS_TOKEN_ID = 2
BLOCKS_EACH = 60
MAX_TOKENS = 900
"""More than the grammars below can need."""
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
PERSON = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
WORD = Grammar(GrammarKind.REGEX, "[a-z]{2,9}(-[0-9]+){0,3}\\.")
WARM = SamplingParams(temperature=1.5, seed=3)


@dataclass(frozen=True)
class Spoken:
    """A tiny model with a tokenizer."""

    model: TinyModel

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Of its folder."""
        return Tokenizer.load(self.model.directory)

    @cached_property
    def compiler(self) -> GrammarCompiler:
        """Of its folder."""
        return GrammarCompiler.load(
            self.model.directory, vocab_size=VOCAB_SIZE, eos_token_ids=(EOS_TOKEN_ID,)
        )

    def runner(self) -> LocalRunner:
        """With a cache and grammar states of its own."""
        return one_rank(
            self.model.loaded,
            num_blocks=6 * BLOCKS_EACH,
            block_size=BLOCK_SIZE,
            num_threads=1,
            grammars=GrammarStates(self.compiler),
        )

    def text(self, asking: "Asking") -> str:
        """What was answered."""
        assert asking.answer.output[-1] == EOS_TOKEN_ID
        return self.tokenizer.decode(asking.answer.output[:-1], skip_special_tokens=False)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Spoken:
    """Loaded once."""
    folder = tmp_path_factory.mktemp("spoken")
    return Spoken(TinyModel(write_tiny_llama(folder, vocab_size=VOCAB_SIZE)))


@dataclass(frozen=True)
class Asking:
    """One request, worked off until its end token."""

    number: int
    sampling: SamplingParams
    answer: Answer

    @property
    def is_over(self) -> bool:
        return self.answer.output[-1:] == (EOS_TOKEN_ID,)

    def entry(self) -> BatchEntry:
        entry = self.answer.next_entry()
        stop = StopParams(max_tokens=MAX_TOKENS, stop_token_ids=(EOS_TOKEN_ID,))
        spec = entry.sample and replace(entry.sample, sampling=self.sampling, stop=stop)
        return replace(entry, key=f"request/{self.number}", sample=spec)


def asking(number: int, sampling: SamplingParams, forced: Sequence[int] = ()) -> Asking:
    """With blocks of its own."""
    first = number * BLOCKS_EACH
    answer = Answer(
        random_prompt(9 + number, seed=number), tuple(range(first, first + BLOCKS_EACH))
    )
    answer.output = tuple(forced)
    return Asking(number, sampling, answer)


def work_off(runner: LocalRunner, askings: Sequence[Asking]) -> None:
    """Until all have ended."""
    for _ in range(MAX_TOKENS):
        running = [one for one in askings if not one.is_over]
        if not running:
            return
        entries = [one.entry() for one in running]
        for one, entry, token_id in zip(
            running, entries, runner.step(entries).token_ids, strict=True
        ):
            one.answer.absorb(entry, token_id)
    raise AssertionError(f"not over after {MAX_TOKENS} tokens")


SAMPLINGS = [
    # id                  parameters
    ("schema, greedy", replace(GREEDY, grammar=PERSON)),
    ("schema, drawn", replace(WARM, grammar=PERSON)),
    ("schema, drawn and penalised", replace(WARM, grammar=PERSON, top_p=0.9, presence_penalty=1)),
    (
        "object, biased to its end",
        replace(WARM, grammar=Grammar(GrammarKind.JSON_OBJECT), logit_bias={3 + ord("}"): 30.0}),
    ),
    ("regex, greedy", replace(GREEDY, grammar=WORD)),
    ("regex, drawn", replace(WARM, grammar=WORD)),
]
IDS = [s[0] for s in SAMPLINGS]


def assert_matches(grammar: Grammar, text: str) -> None:
    if grammar.kind is GrammarKind.REGEX:
        assert re.fullmatch(grammar.text, text)
        return
    value = json.loads(text)
    assert isinstance(value, dict)
    if grammar == PERSON:
        assert list(value) == ["name", "age", "tags"]
        assert isinstance(value["name"], str)
        assert len(value["name"]) <= 10
        assert 0 <= value["age"] <= 150
        assert len(value["tags"]) <= 2
        assert set(value["tags"]) <= {"red", "blue"}


def test_answers_match_and_do_not_depend_on_their_batch(spoken: Spoken) -> None:
    together = [asking(number, sampling) for number, (_, sampling) in enumerate(SAMPLINGS)]
    work_off(spoken.runner(), together)
    for one in together:
        assert one.sampling.grammar is not None
        assert_matches(one.sampling.grammar, spoken.text(one))
        alone = asking(one.number, one.sampling)
        work_off(spoken.runner(), [alone])
        assert alone.answer.output == one.answer.output


def test_free_requests_of_the_batch_stay_free(spoken: Spoken) -> None:
    free, bound = asking(0, GREEDY), asking(1, SAMPLINGS[0][1])
    runner = spoken.runner()
    for _ in range(20):
        entries = [free.entry(), bound.entry()]
        for one, entry, token_id in zip(
            (free, bound), entries, runner.step(entries).token_ids, strict=True
        ):
            one.answer.absorb(entry, token_id)
    assert list(free.answer.output) == spoken.model.generate(free.answer.prompt, 20)


@pytest.mark.parametrize("sampling", [s[1] for s in SAMPLINGS], ids=IDS)
def test_an_answer_goes_on_elsewhere_as_it_would_have_here(
    spoken: Spoken, sampling: SamplingParams
) -> None:
    """Another runner is told the tokens so far, by force; or this one again, at any of them."""
    whole = asking(0, sampling)
    first = spoken.runner()
    work_off(first, [whole])
    output = whole.answer.output
    for num_forced in (1, len(output) // 2, len(output) - 1):
        for runner in (spoken.runner(), first):
            again = asking(0, sampling, output[:num_forced])
            work_off(runner, [again])
            assert again.answer.output == output


def test_forced_tokens_that_do_not_match_end_the_answer_and_no_other(spoken: Spoken) -> None:
    refused = asking(0, replace(WARM, grammar=PERSON), forced=(50, 51, 52))
    other = asking(1, replace(WARM, grammar=PERSON))
    work_off(spoken.runner(), [refused, other])
    assert refused.answer.output == (50, 51, 52, EOS_TOKEN_ID)
    assert_matches(PERSON, spoken.text(other))


def allowed(states: GrammarStates, key: str, grammar: Grammar, output: str) -> str:
    """The single letters that may come after `output`."""
    spec = sample_spec(
        output=[3 + byte for byte in output.encode()], sampling=replace(GREEDY, grammar=grammar)
    )
    mask: npt.NDArray[np.uint8] | None = states.mask(key, spec)
    assert mask is not None
    bits = np.unpackbits(mask, bitorder="little")
    return "".join(chr(byte) for byte in range(33, 127) if bits[3 + byte])


def test_states_follow_whatever_they_are_told(spoken: Spoken) -> None:
    one = Grammar(GrammarKind.REGEX, "ab(c|d)")
    two = Grammar(GrammarKind.REGEX, "ax")
    states = GrammarStates(spoken.compiler)
    # The letters of this vocabulary begin behind its three special tokens, in order of bytes.
    for key, grammar, output, want in [
        ("a", one, "", "a"),
        ("a", one, "ab", "cd"),
        ("a", one, "a", "b"),  # an earlier attempt delivered less
        ("a", one, "ab", "cd"),
        ("b", one, "a", "b"),
        ("a", two, "a", "x"),  # another request of the same name
        ("a", one, "ax", ""),
        ("a", one, "ab", "cd"),
        ("b", one, "ab", "cd"),
    ]:
        assert allowed(states, key, grammar, output) == want
    assert states.mask("a", sample_spec()) is None


def test_forgotten_requests_are_read_again(spoken: Spoken) -> None:
    grammar = Grammar(GrammarKind.REGEX, "abc")
    states = GrammarStates(spoken.compiler)
    assert allowed(states, "first", grammar, "a") == "b"
    for number in range(MAX_STATES + 1):
        allowed(states, str(number), grammar, "")
    assert allowed(states, "first", grammar, "ab") == "c"


def test_logprobs_equal_the_oracles(spoken: Spoken) -> None:
    """Of the model alone, though a grammar forbids what is likely."""
    wanted = [20, None, 0, 3]
    askings = [
        asking(number, replace(WARM, grammar=PERSON if number % 2 else None, num_logprobs=k))
        for number, k in enumerate([*wanted, 20])
    ]
    result = spoken.runner().step([one.entry() for one in askings])
    for one, token_id, told in zip(askings, result.token_ids, result.logprobs, strict=True):
        assert token_id is not None
        if (k := one.sampling.num_logprobs) is None:
            assert told is None
            continue
        assert told is not None
        with torch.inference_mode():
            logits = spoken.model.oracle(torch.tensor([one.answer.prompt])).logits[0, -1]
        want = logits.double().log_softmax(-1)
        best = want.topk(k)
        assert told.logprob == pytest.approx(float(want[token_id]), abs=1e-4)
        assert [top_id for top_id, _ in told.top] == best.indices.tolist()
        assert [value for _, value in told.top] == pytest.approx(best.values.tolist(), abs=1e-4)
