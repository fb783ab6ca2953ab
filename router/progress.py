"""What a client has of one answer, and how it asks another router for the rest; no IO."""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypedDict

from core.request import Grammar, GrammarKind
from router.events import Accepted, Delta, Event, Finished
from rpc.convert import SAMPLING_NUMBERS, grammar_to_pb
from rpc.pb import generation_pb2, types_pb2


class Options(TypedDict, total=False):
    """How to generate; bounds and defaults as in generation.proto."""

    token_ids: Sequence[int]
    """In place of a text."""
    messages: Sequence[Mapping[str, str]]
    """In place of a text: a chat of role and content."""
    request_id: str
    model: str
    max_tokens: int
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int
    logprobs: int
    """With each token its log-probability and so many of the likeliest tokens."""
    json_schema: str | Mapping[str, object]
    """What the answer must match; at most one of this and the next two."""
    regex: str
    json_object: bool
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    n: int
    """Choices."""
    timeout_s: float
    tenant: str
    priority: int


_SAMPLING = {
    **{name: name for name in SAMPLING_NUMBERS},
    "logit_bias": "logit_bias",
    "seed": "seed",
    "logprobs": "num_logprobs",
}
_STOP = {
    "max_tokens": "max_tokens",
    "min_tokens": "min_tokens",
    "stop_token_ids": "stop_token_ids",
    "stop": "stop_strings",
    "ignore_eos": "ignore_eos",
}


def build_message(prompt: str | None, options: Options) -> generation_pb2.GenerateRequest:
    """The first request. Id and seed are drawn here, so that any router can go on with it."""
    given: Mapping[str, object] = {"seed": secrets.randbits(64), **options}
    sampling = {field: given[name] for name, field in _SAMPLING.items() if name in given}
    grammar = _grammar_of(options)
    stop = {field: given[name] for name, field in _STOP.items() if name in given}
    message = generation_pb2.GenerateRequest(
        request_id=options.get("request_id") or secrets.token_hex(16),
        model=options.get("model", ""),
        sampling=types_pb2.SamplingParams(
            **sampling,  # type: ignore[arg-type]
            grammar=None if grammar is None else grammar_to_pb(grammar),
        ),
        stop=types_pb2.StopParams(**stop),  # type: ignore[arg-type]
        num_choices=options.get("n", 1),
        tenant=options.get("tenant", ""),
        priority=options.get("priority", 0),
    )
    _set_prompt(message, prompt, options)
    return message


def _grammar_of(options: Options) -> Grammar | None:
    found: list[Grammar] = []
    if (schema := options.get("json_schema")) is not None:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        found.append(Grammar(GrammarKind.JSON_SCHEMA, text))
    if (regex := options.get("regex")) is not None:
        found.append(Grammar(GrammarKind.REGEX, regex))
    if options.get("json_object"):
        found.append(Grammar(GrammarKind.JSON_OBJECT))
    if len(found) > 1:
        names = " and ".join(grammar.kind.value for grammar in found)
        raise ValueError(f"give at most one of json_schema, regex and json_object, got {names}")
    return found[0] if found else None


def _set_prompt(
    message: generation_pb2.GenerateRequest, prompt: str | None, options: Options
) -> None:
    given = [prompt is not None, "token_ids" in options, "messages" in options]
    if sum(given) != 1:
        raise ValueError("give exactly one of prompt, token_ids and messages")
    if prompt is not None:
        message.text = prompt
    elif "token_ids" in options:
        message.token_ids.ids.extend(options["token_ids"])
        message.token_ids.SetInParent()
    else:
        for entry in options["messages"]:
            message.chat.messages.add(role=entry["role"], content=entry["content"])
        message.chat.SetInParent()


class Progress:
    """Follows one answer over any number of routers."""

    def __init__(self, message: generation_pb2.GenerateRequest) -> None:
        self._message = message
        self._epoch = 0
        self._token_ids: list[int] = []
        self._num_chars = 0
        self._num_chars_to_skip = 0
        self._is_accepted = False
        self._num_finished = 0

    @property
    def is_complete(self) -> bool:
        """Every choice has finished."""
        return self._num_finished == self._message.num_choices

    def message(self, timeout_s: float) -> generation_pb2.GenerateRequest:
        """To send now."""
        self._message.timeout_s = timeout_s
        return self._message

    def resume(self) -> bool:
        """Prepare for another router; False when the answer cannot go on there."""
        message = self._message
        if message.num_choices == 1:
            self._epoch += 1
            message.resume.epoch = self._epoch
            del message.resume.output_token_ids[:]
            message.resume.output_token_ids.extend(self._token_ids)
            # A resumed answer's text begins anew: what the tokens made certain depends on who asks.
            self._num_chars_to_skip = self._num_chars
            return True
        # Several choices cannot be resumed, but what was never begun can be asked for again.
        message.request_id = secrets.token_hex(16)
        return not self._is_accepted

    def take(self, event: Event) -> Event | None:
        """The event as the caller sees it; None for what it has seen."""
        if isinstance(event, Accepted):
            is_first, self._is_accepted = not self._is_accepted, True
            return event if is_first else None
        if isinstance(event, Finished):
            self._num_finished += 1
            return event
        return self._take_delta(event)

    def _take_delta(self, delta: Delta) -> Delta | None:
        text = delta.text[self._num_chars_to_skip :]
        self._num_chars_to_skip = max(0, self._num_chars_to_skip - len(delta.text))
        if self._message.num_choices == 1:
            self._token_ids += delta.token_ids
            self._num_chars += len(text)
        if not text and not delta.token_ids:
            return None
        return replace(delta, text=text)
