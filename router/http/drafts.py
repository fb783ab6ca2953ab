"""From a client's fields to what the orchestrator serves; what is not built is refused by name."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from core.errors import FieldViolation, InvalidRequest, Unsupported
from core.request import Grammar, GrammarKind, SamplingParams
from core.validation import Chat, ChatMessage, RequestDraft
from router.http.fields import (
    MAX_PROMPTS,
    ChatFields,
    CompletionFields,
    GenerationFields,
    MessageFields,
    ResponseFormat,
    StructuredOutputs,
)

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for completions; chats go on to the context limit."""

_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


def completion_drafts(
    fields: CompletionFields, defaults: SamplingParams, origin: RequestDraft
) -> list[RequestDraft]:
    """One per prompt; `origin` has what the request's headers said.

    Raises InvalidRequest or Unsupported.
    """
    _refuse(_unbuilt(fields) | _unbuilt_of_completions(fields))
    prompts = _prompts(fields.prompt)
    draft = _draft(fields, defaults, origin, num_logprobs=fields.logprobs)
    if draft.max_tokens is None:
        draft = replace(draft, max_tokens=DEFAULT_COMPLETION_TOKENS)
    return [
        replace(draft, prompt=prompt, request_id=_id_of(origin.request_id, i, len(prompts)))
        for i, prompt in enumerate(prompts)
    ]


def chat_draft(fields: ChatFields, defaults: SamplingParams, origin: RequestDraft) -> RequestDraft:
    """The one request of a chat. Raises InvalidRequest or Unsupported."""
    _refuse(_unbuilt(fields) | _unbuilt_of_chats(fields))
    if fields.top_logprobs is not None and not fields.logprobs:
        raise _invalid("top_logprobs", "needs logprobs to be true")
    num_logprobs = (fields.top_logprobs or 0) if fields.logprobs else None
    draft = _draft(fields, defaults, origin, num_logprobs=num_logprobs)
    limit = fields.max_completion_tokens
    return replace(
        draft,
        prompt=chat_of(fields.messages),
        max_tokens=draft.max_tokens if limit is None else limit,
    )


def chat_of(messages: Sequence[MessageFields]) -> Chat:
    """Messages as the template reads them. Raises Unsupported for parts that are no text."""
    return Chat(tuple(ChatMessage(_role(m), _content(i, m)) for i, m in enumerate(messages)))


def _role(message: MessageFields) -> str:
    # OpenAI's newer name for it; templates of open models know only the older.
    return "system" if message.role == "developer" else message.role


def _content(index: int, message: MessageFields) -> str:
    content = message.content
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.type != "text":
            raise Unsupported(f"messages[{index}]: only parts of type text are supported")
    return "".join(part.text or "" for part in content)


def _draft(
    fields: GenerationFields,
    defaults: SamplingParams,
    origin: RequestDraft,
    *,
    num_logprobs: int | None,
) -> RequestDraft:
    given = {name: getattr(fields, name) for name in _SAMPLING}
    sampling = replace(
        defaults,
        **{name: value for name, value in given.items() if value is not None},
        logit_bias=_bias(fields.logit_bias or {}),
        num_logprobs=num_logprobs,
        grammar=_grammar(fields.response_format, fields.structured_outputs),
    )
    if sampling.top_k == -1:  # vLLM's way to say: all
        sampling = replace(sampling, top_k=0)
    return replace(
        origin,
        model=fields.model,
        sampling=sampling,
        seed=_seed(fields.seed),
        max_tokens=fields.max_tokens,
        min_tokens=fields.min_tokens or 0,
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        stop_strings=tuple(fields.stop or ()),
        ignore_eos=bool(fields.ignore_eos),
        num_choices=1 if fields.n is None else fields.n,
        # vLLM's lower goes first, ours goes last.
        priority=-(fields.priority or 0),
    )


def _seed(seed: int | None) -> int | None:
    """OpenAI's seeds are signed: the negative ones become the upper half of ours."""
    return seed + 2**64 if seed is not None and -(2**63) <= seed < 0 else seed


def _bias(given: dict[str, float]) -> dict[int, float]:
    try:
        return {int(token_id): value for token_id, value in given.items()}
    except ValueError:
        raise _invalid("logit_bias", "keys must be token ids") from None


def _id_of(request_id: str, index: int, num_prompts: int) -> str:
    return request_id if num_prompts == 1 else f"{request_id}-{index}"


def _prompts(given: str | list[str] | list[int] | list[list[int]] | None) -> list[Any]:
    if given is None:
        raise _invalid("prompt", "is needed: a text, token ids, or a list of either")
    if isinstance(given, str):
        return [given]
    if not given or isinstance(given[0], int):
        return [tuple(given)]
    if len(given) > MAX_PROMPTS:
        raise _invalid("prompt", f"at most {MAX_PROMPTS} prompts, got {len(given)}")
    return [prompt if isinstance(prompt, str) else tuple(prompt) for prompt in given]


# --- grammars -----------------------------------------------------------------------------------


def _grammar(wanted: ResponseFormat | None, structured: StructuredOutputs | None) -> Grammar | None:
    found = [*_of_response_format(wanted), *_of_structured_outputs(structured)]
    if len(found) > 1:
        raise _invalid("structured_outputs", "at most one thing that the answer must match")
    return found[0] if found else None


def _of_response_format(wanted: ResponseFormat | None) -> Iterator[Grammar]:
    if wanted is None or wanted.type == "text":
        return
    if wanted.type == "json_object":
        yield Grammar(GrammarKind.JSON_OBJECT)
    elif wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise _invalid("response_format.json_schema.schema", "is needed for type json_schema")
    else:
        yield _schema(wanted.json_schema.schema_)


def _of_structured_outputs(wanted: StructuredOutputs | None) -> Iterator[Grammar]:
    if wanted is None:
        return
    for name in ("choice", "grammar", "structural_tag"):
        if getattr(wanted, name) is not None:
            raise Unsupported(f"structured_outputs.{name} is not supported; use json or regex")
    if wanted.json_ is not None:
        yield _schema(wanted.json_)
    if wanted.regex is not None:
        yield Grammar(GrammarKind.REGEX, wanted.regex)
    if wanted.json_object:
        yield Grammar(GrammarKind.JSON_OBJECT)


def _schema(schema: str | dict[str, Any]) -> Grammar:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return Grammar(GrammarKind.JSON_SCHEMA, text)


# --- what is not built --------------------------------------------------------------------------

_Refusals = dict[str, bool]
"""What is not supported → whether it was asked for."""


def _refuse(refusals: _Refusals) -> None:
    asked = [name for name, is_asked in refusals.items() if is_asked]
    if asked:
        raise Unsupported(f"not supported: {', '.join(asked)}")


def _unbuilt(fields: GenerationFields) -> _Refusals:
    return {
        "tools": bool(fields.tools),
        "lora_request": fields.lora_request is not None,
        "prompt_logprobs": fields.prompt_logprobs is not None,
    }


def _unbuilt_of_completions(fields: CompletionFields) -> _Refusals:
    return {
        "suffix": bool(fields.suffix),
        "best_of above n": fields.best_of is not None and fields.best_of > (fields.n or 1),
        "echo with logprobs": bool(fields.echo) and fields.logprobs is not None,
    }


def _unbuilt_of_chats(fields: ChatFields) -> _Refusals:
    return {
        "functions": bool(fields.functions),
        "tool_calls": any(message.tool_calls for message in fields.messages),
        "modalities other than text": bool(set(fields.modalities or ()) - {"text"}),
    }


def _invalid(field: str, description: str) -> InvalidRequest:
    return InvalidRequest((FieldViolation(field, description),))
