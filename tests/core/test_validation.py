"""The one validation: each bound as a table row, at the bound and just past it."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import limits
from core.errors import InvalidRequest
from core.ids import RequestId
from core.request import Request, SamplingParams
from core.validation import (
    MAX_VIOLATIONS,
    Arrival,
    Chat,
    ChatMessage,
    ModelLimits,
    RequestDraft,
    Resume,
    build_request,
    check_draft,
)

MODEL = ModelLimits(vocab_size=100, max_context_tokens=32, eos_token_ids=(2,))
DRAFT = RequestDraft(prompt=(5, 6, 7), max_tokens=4)
ARRIVAL = Arrival(request_id=RequestId("r"), model="m", seed=9, arrived_at_s=1.0, deadline_s=2.0)


def build(draft: RequestDraft, prompt: tuple[int, ...] = (5, 6, 7)) -> Request:
    return build_request(draft, prompt, MODEL, ARRIVAL)


def sampling(**values: Any) -> dict[str, Any]:
    return {"sampling": SamplingParams(**values)}


def chat(num: int, role: str = "user", content: str = "hi") -> dict[str, Any]:
    return {"prompt": Chat((ChatMessage(role, content),) * num)}


def resume(**values: Any) -> dict[str, Any]:
    fields = {"epoch": 1, "output_token_ids": (1,), **values}
    return {"resume": Resume(**fields), "request_id": "r", "seed": 1}


GOOD = [
    ("text", {"prompt": "hello"}),
    ("chat", chat(limits.MAX_CHAT_MESSAGES)),
    ("role of 64", chat(1, role="r" * 64)),
    ("highest token", {"prompt": (99,)}),
    ("fills the context", {"prompt": (5,) * 28}),
    ("longest id", {"request_id": "a" * 128}),
    ("all characters of an id", {"request_id": "aZ09._:-"}),
    ("most choices", {"num_choices": 16}),
    ("longest time", {"timeout_s": limits.MAX_TIMEOUT_S}),
    ("bounds of sampling", sampling(temperature=100.0, top_k=100, top_p=1.0, min_p=1.0)),
    ("penalties", sampling(repetition_penalty=10.0, presence_penalty=-2.0, frequency_penalty=2.0)),
    ("bias", sampling(logit_bias={0: -100.0, 99: 100.0})),
    ("largest seed", {"seed": 2**64 - 1}),
    ("no max_tokens", {"max_tokens": None}),
    ("most stop strings", {"stop_strings": ("x" * 64,) * 64}),
    ("most stop ids", {"stop_token_ids": (99,) * 256}),
    ("min is max", {"min_tokens": 4}),
    ("resume", resume()),
    ("resume with all tokens", resume(output_token_ids=(1,) * 4)),
]

BAD = [
    # id                      what differs                               field
    ("no prompt", {"prompt": None}, "prompt"),
    ("empty text", {"prompt": ""}, "text"),
    ("lone surrogate", {"prompt": "a\ud800"}, "text"),
    ("empty tokens", {"prompt": ()}, "token_ids.ids"),
    ("token out of vocabulary", {"prompt": (5, 100)}, "token_ids.ids[1]"),
    ("negative token", {"prompt": (-1,)}, "token_ids.ids[0]"),
    ("prompt fills the context", {"prompt": (5,) * 32, "max_tokens": None}, "prompt"),
    ("prompt and answer over the context", {"prompt": (5,) * 29}, "stop.max_tokens"),
    ("empty chat", {"prompt": Chat(())}, "chat.messages"),
    ("long chat", chat(limits.MAX_CHAT_MESSAGES + 1), "chat.messages"),
    ("empty role", chat(1, role=""), "chat.messages[0].role"),
    ("long role", chat(1, role="r" * 65), "chat.messages[0].role"),
    ("surrogate in a chat", chat(1, content="\udfff"), "chat.messages[0]"),
    ("long id", {"request_id": "a" * 129}, "request_id"),
    ("slash in an id", {"request_id": "a/0"}, "request_id"),
    ("newline in an id", {"request_id": "a\n"}, "request_id"),
    ("no choices", {"num_choices": 0}, "num_choices"),
    ("many choices", {"num_choices": 17}, "num_choices"),
    ("no time", {"timeout_s": 0.0}, "timeout_s"),
    ("NaN time", {"timeout_s": math.nan}, "timeout_s"),
    ("endless time", {"timeout_s": math.inf}, "timeout_s"),
    ("cold", sampling(temperature=-0.1), "sampling.temperature"),
    ("NaN temperature", sampling(temperature=math.nan), "sampling.temperature"),
    ("infinite temperature", sampling(temperature=math.inf), "sampling.temperature"),
    ("top_k past the vocabulary", sampling(top_k=101), "sampling.top_k"),
    ("negative top_k", sampling(top_k=-1), "sampling.top_k"),
    ("zero top_p", sampling(top_p=0.0), "sampling.top_p"),
    ("NaN top_p", sampling(top_p=math.nan), "sampling.top_p"),
    ("large min_p", sampling(min_p=1.1), "sampling.min_p"),
    ("zero repetition", sampling(repetition_penalty=0.0), "sampling.repetition_penalty"),
    ("presence", sampling(presence_penalty=2.1), "sampling.presence_penalty"),
    ("frequency", sampling(frequency_penalty=-2.1), "sampling.frequency_penalty"),
    ("bias token", sampling(logit_bias={100: 0.0}), "sampling.logit_bias[0]"),
    ("bias value", sampling(logit_bias={1: math.nan}), "sampling.logit_bias[1]"),
    ("much bias", sampling(logit_bias=dict.fromkeys(range(1025), 0.0)), "sampling.logit_bias"),
    ("large seed", {"seed": 2**64}, "sampling.seed"),
    ("negative seed", {"seed": -1}, "sampling.seed"),
    ("zero max_tokens", {"max_tokens": 0}, "stop.max_tokens"),
    ("negative max_tokens", {"max_tokens": -1}, "stop.max_tokens"),
    ("negative min_tokens", {"min_tokens": -1}, "stop.min_tokens"),
    ("min above max", {"min_tokens": 5}, "stop.min_tokens"),
    ("empty stop", {"stop_strings": ("",)}, "stop.stop_strings[0]"),
    ("long stop", {"stop_strings": ("ok", "x" * 65)}, "stop.stop_strings[1]"),
    ("many stops", {"stop_strings": ("x",) * 65}, "stop.stop_strings"),
    ("surrogate in a stop", {"stop_strings": ("\ud800",)}, "stop.stop_strings[0]"),
    ("many stop ids", {"stop_token_ids": (1,) * 257}, "stop.stop_token_ids"),
    ("stop id out of vocabulary", {"stop_token_ids": (100,)}, "stop.stop_token_ids[0]"),
    ("resume from epoch 0", resume(epoch=0), "resume.epoch"),
    ("resume several", {**resume(), "num_choices": 2}, "num_choices"),
    ("resume nobody", {**resume(), "request_id": ""}, "request_id"),
    ("resume without seed", {**resume(), "seed": None}, "sampling.seed"),
    ("resume with strange tokens", resume(output_token_ids=(100,)), "resume.output_token_ids[0]"),
    ("resume past the end", resume(output_token_ids=(1,) * 5), "resume.output_token_ids"),
]


@pytest.mark.parametrize("change", [c[1] for c in GOOD], ids=[c[0] for c in GOOD])
def test_at_the_bound(change: dict[str, Any]) -> None:
    check_draft(replace(DRAFT, **change), MODEL)


@pytest.mark.parametrize(("change", "field"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_past_the_bound(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_draft(replace(DRAFT, **change), MODEL)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_all_violations_at_once() -> None:
    draft = replace(DRAFT, prompt=(), max_tokens=0, num_choices=0, request_id="/")
    with pytest.raises(InvalidRequest) as caught:
        check_draft(draft, MODEL)
    fields = {violation.field for violation in caught.value.violations}
    assert fields == {"token_ids.ids", "stop.max_tokens", "num_choices", "request_id"}


def test_not_more_violations_than_anybody_reads() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_draft(replace(DRAFT, **chat(1000, role="")), MODEL)
    assert len(caught.value.violations) == MAX_VIOLATIONS


def test_sizes_are_named() -> None:
    with pytest.raises(InvalidRequest, match="29 prompt tokens \\+ 4 exceed the context of 32"):
        build(DRAFT, (5,) * 29)


def test_max_tokens_defaults_to_the_room_left() -> None:
    request = build(replace(DRAFT, max_tokens=None))
    assert request.stop.max_tokens == 29


def test_end_of_sequence_joins_the_stop_ids() -> None:
    draft = replace(DRAFT, stop_token_ids=(7, 2))
    assert build(draft).stop.stop_token_ids == (7, 2)
    assert build(DRAFT).stop.stop_token_ids == (2,)
    assert build(replace(DRAFT, ignore_eos=True)).stop.stop_token_ids == ()


def test_resumed_tokens_and_seed_are_kept() -> None:
    request = build(replace(DRAFT, **resume(epoch=3, output_token_ids=(8, 9))))
    assert (request.epoch, request.resumed_token_ids) == (3, (8, 9))
    assert request.sampling.seed == 9


numbers = st.floats() | st.integers(-(2**70), 2**70).map(float)
whole = st.integers(-(2**70), 2**70)


@given(
    draft=st.builds(
        RequestDraft,
        prompt=st.none() | st.text(max_size=5) | st.lists(whole, max_size=5).map(tuple),
        request_id=st.text(max_size=5),
        sampling=st.builds(
            SamplingParams,
            temperature=numbers,
            top_k=whole,
            top_p=numbers,
            min_p=numbers,
            logit_bias=st.dictionaries(whole, numbers, max_size=3),
        ),
        seed=st.none() | whole,
        max_tokens=st.none() | whole,
        min_tokens=whole,
        stop_token_ids=st.lists(whole, max_size=3).map(tuple),
        stop_strings=st.lists(st.text(max_size=3), max_size=3).map(tuple),
        num_choices=whole,
        timeout_s=st.none() | numbers,
    )
)
def test_anything_is_judged_and_what_passes_is_within_bounds(draft: RequestDraft) -> None:
    try:
        check_draft(draft, MODEL)
        request = build(draft)
    except InvalidRequest:
        return
    assert 1 <= request.stop.max_tokens <= MODEL.max_context_tokens
    assert 0 <= request.stop.min_tokens <= request.stop.max_tokens
    assert math.isfinite(request.sampling.temperature)
