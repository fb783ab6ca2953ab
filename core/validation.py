"""The one validation of every front door: bounds, all of them, before anything is allocated."""

import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from core import limits
from core.errors import FieldViolation, InvalidRequest
from core.ids import RequestId
from core.request import Request, SamplingParams, StopParams

MAX_ROLE_CHARS = 64
MAX_VIOLATIONS = 32
"""Reported at once; an answer with thousands helps nobody and would itself be too large."""
MAX_TOKEN_ID = 2**31 - 1
"""Vocabularies are far smaller; workers keep ids in 32 bits."""

TENANT = re.compile(rf"[A-Za-z0-9._:-]{{0,{limits.MAX_TENANT_CHARS}}}", re.ASCII)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, framed by the model's own template."""

    messages: tuple[ChatMessage, ...]


@dataclass(frozen=True, slots=True)
class Resume:
    """What a client already has from a router that it lost."""

    epoch: int
    output_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDraft:
    """What a front door read off its wire; nothing in it is checked."""

    prompt: str | tuple[int, ...] | Chat | None
    request_id: str = ""
    model: str = ""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """Its seed is not read: see `seed`."""
    seed: int | None = None
    """None: the router draws one."""
    max_tokens: int | None = None
    """None: the model's default."""
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    ignore_eos: bool = False
    num_choices: int = 1
    timeout_s: float | None = None
    """None: the router's default."""
    tenant: str = ""
    priority: int = 0
    resume: Resume | None = None
    trace_parent: str = ""
    """W3C traceparent of whoever asks; one that cannot be read is ignored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """What the model that answers can take."""

    vocab_size: int
    max_context_tokens: int
    """Prompt and output tokens together; what the smallest instance can hold."""
    eos_token_ids: tuple[int, ...] = ()
    default_max_tokens: int | None = None
    """Of an answer whose client names no limit; None: up to the context limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """What the router adds to a draft; moments on its own clock."""

    request_id: RequestId
    model: str
    seed: int
    arrived_at_s: float
    deadline_s: float


def request_id_of(wanted: str) -> RequestId:
    """The id that a client gave; a fresh one when it gave none, or none that could be one.

    So that a request has a name before anything of it is judged.
    """
    is_usable = 0 < len(wanted) <= limits.MAX_REQUEST_ID_CHARS and _REQUEST_ID.fullmatch(wanted)
    return RequestId(wanted if is_usable else secrets.token_hex(16))


def check_draft(draft: RequestDraft, model: ModelLimits) -> None:
    """Judge everything but the length of a prompt that is still text.

    Raises InvalidRequest with every violation (at most MAX_VIOLATIONS of them).
    """
    _refuse(_draft_violations(draft, model))


def build_request(
    draft: RequestDraft, prompt_token_ids: tuple[int, ...], model: ModelLimits, arrival: Arrival
) -> Request:
    """The first choice of a checked draft, its prompt tokenized.

    Raises InvalidRequest when prompt and answer do not fit the model's context.
    """
    _refuse(_length_violations(draft, len(prompt_token_ids), model))
    return Request(
        request_id=arrival.request_id,
        model=arrival.model,
        prompt_token_ids=prompt_token_ids,
        sampling=replace(draft.sampling, seed=arrival.seed),
        stop=_stop_params(draft, len(prompt_token_ids), model),
        deadline_s=arrival.deadline_s,
        epoch=draft.resume.epoch if draft.resume else 0,
        resumed_token_ids=draft.resume.output_token_ids if draft.resume else (),
        arrived_at_s=arrival.arrived_at_s,
        tenant=draft.tenant,
        priority=draft.priority,
    )


def _stop_params(draft: RequestDraft, num_prompt_tokens: int, model: ModelLimits) -> StopParams:
    room = model.max_context_tokens - num_prompt_tokens
    default = min(room, model.default_max_tokens or room)
    eos = () if draft.ignore_eos else model.eos_token_ids
    return StopParams(
        max_tokens=default if draft.max_tokens is None else draft.max_tokens,
        min_tokens=draft.min_tokens,
        stop_token_ids=tuple(dict.fromkeys(draft.stop_token_ids + eos)),
        stop_strings=draft.stop_strings,
    )


def _refuse(found: Iterator[FieldViolation]) -> None:
    violations = tuple(
        violation for violation, _ in zip(found, range(MAX_VIOLATIONS), strict=False)
    )
    if violations:
        raise InvalidRequest(violations)


def _draft_violations(draft: RequestDraft, model: ModelLimits) -> Iterator[FieldViolation]:
    yield from _envelope_violations(draft)
    yield from _prompt_violations(draft, model)
    yield from sampling_violations(draft.sampling, model.vocab_size)
    yield from _whole("sampling.seed", draft.seed, 0, limits.MAX_SEED)
    yield from _stop_violations(draft, model)
    yield from _grammar_violations(draft)
    if draft.resume is not None:
        yield from _resume_violations(draft, draft.resume, model)


def _envelope_violations(draft: RequestDraft) -> Iterator[FieldViolation]:
    size = len(draft.request_id)
    if size > limits.MAX_REQUEST_ID_CHARS:
        reason = f"has {size} characters, limit {limits.MAX_REQUEST_ID_CHARS}"
        yield FieldViolation("request_id", reason)
    elif not _REQUEST_ID.fullmatch(draft.request_id):
        yield FieldViolation("request_id", "only [A-Za-z0-9._:-] are allowed")
    yield from _whole("num_choices", draft.num_choices, 1, limits.MAX_NUM_CHOICES)
    yield from _whole("priority", draft.priority, -limits.MAX_PRIORITY, limits.MAX_PRIORITY)
    if not TENANT.fullmatch(draft.tenant):
        reason = f"must be at most {limits.MAX_TENANT_CHARS} of [A-Za-z0-9._:-]"
        yield FieldViolation("tenant", reason)
    if draft.timeout_s is not None and not 0 < draft.timeout_s <= limits.MAX_TIMEOUT_S:
        reason = f"must be above 0 to {limits.MAX_TIMEOUT_S:g} seconds, got {draft.timeout_s:g}"
        yield FieldViolation("timeout_s", reason)


def _prompt_violations(draft: RequestDraft, model: ModelLimits) -> Iterator[FieldViolation]:
    prompt = draft.prompt
    if prompt is None:
        yield FieldViolation("prompt", "one of text, token_ids and chat is needed")
    elif isinstance(prompt, str):
        yield from _text_violations("text", prompt)
    elif isinstance(prompt, Chat):
        yield from _chat_violations(prompt)
    elif not prompt:
        yield FieldViolation("token_ids.ids", "at least 1 token is needed, got 0")
    else:
        # Too long is said first, and alone: nobody looks through a million ids.
        too_long = list(_length_violations(draft, len(prompt), model))
        yield from too_long or token_violations("token_ids.ids", prompt, model.vocab_size)


def _text_violations(name: str, text: str) -> Iterator[FieldViolation]:
    if not text:
        yield FieldViolation(name, "must not be empty")
    elif not _is_unicode(text):
        yield FieldViolation(name, "must be valid Unicode, found a lone surrogate")


def _chat_violations(chat: Chat) -> Iterator[FieldViolation]:
    size = len(chat.messages)
    if not 1 <= size <= limits.MAX_CHAT_MESSAGES:
        reason = f"must be 1 to {limits.MAX_CHAT_MESSAGES} messages, got {size}"
        yield FieldViolation("chat.messages", reason)
        return
    for i, message in enumerate(chat.messages):
        if not 1 <= len(message.role) <= MAX_ROLE_CHARS:
            reason = f"must have 1 to {MAX_ROLE_CHARS} characters, got {len(message.role)}"
            yield FieldViolation(f"chat.messages[{i}].role", reason)
        if not (_is_unicode(message.role) and _is_unicode(message.content)):
            yield FieldViolation(f"chat.messages[{i}]", "must be valid Unicode")


def sampling_violations(sampling: SamplingParams, vocab_size: int) -> Iterator[FieldViolation]:
    """Bounds that a client's parameters, or a model's defaults for them, break."""
    closed = {
        "temperature": (0.0, limits.MAX_TEMPERATURE),
        "min_p": (0.0, 1.0),
        "presence_penalty": (-2.0, 2.0),
        "frequency_penalty": (-2.0, 2.0),
    }
    half_open = {"top_p": 1.0, "repetition_penalty": 10.0}
    # Written so that a NaN, which compares false with everything, is refused too.
    for name, (low, high) in closed.items():
        if not low <= (value := getattr(sampling, name)) <= high:
            yield FieldViolation(f"sampling.{name}", f"must be {low:g} to {high:g}, got {value:g}")
    for name, high in half_open.items():
        if not 0 < (value := getattr(sampling, name)) <= high:
            reason = f"must be above 0 to {high:g}, got {value:g}"
            yield FieldViolation(f"sampling.{name}", reason)
    yield from _whole("sampling.top_k", sampling.top_k, 0, vocab_size)
    yield from _whole("sampling.num_logprobs", sampling.num_logprobs, 0, limits.MAX_LOGPROBS)
    yield from _bias_violations(sampling, vocab_size)


def _bias_violations(sampling: SamplingParams, vocab_size: int) -> Iterator[FieldViolation]:
    bias = sampling.logit_bias
    if len(bias) > limits.MAX_LOGIT_BIAS:
        reason = f"at most {limits.MAX_LOGIT_BIAS} entries, got {len(bias)}"
        yield FieldViolation("sampling.logit_bias", reason)
        return
    yield from token_violations("sampling.logit_bias", bias, vocab_size)
    for token_id, value in bias.items():
        if not -100 <= value <= 100:
            reason = f"must be -100 to 100, got {value:g}"
            yield FieldViolation(f"sampling.logit_bias[{token_id}]", reason)


def _grammar_violations(draft: RequestDraft) -> Iterator[FieldViolation]:
    grammar = draft.sampling.grammar
    if grammar is None:
        return
    if (size := len(grammar.text)) > limits.MAX_GRAMMAR_CHARS:
        reason = f"has {size} characters, limit {limits.MAX_GRAMMAR_CHARS}"
        yield FieldViolation("sampling.grammar", reason)
    # A grammar decides when an answer may end; after its last token nothing but the end is left.
    if draft.min_tokens:
        yield FieldViolation("stop.min_tokens", "cannot be combined with a grammar")
    if draft.ignore_eos:
        yield FieldViolation("stop.ignore_eos", "cannot be combined with a grammar")


def _stop_violations(draft: RequestDraft, model: ModelLimits) -> Iterator[FieldViolation]:
    # Above the context limit it is refused with the prompt's length, where both are named.
    yield from _whole("stop.max_tokens", draft.max_tokens, 1, 2**63 - 1)
    most = _most_tokens(draft, model)
    if draft.max_tokens is None or draft.max_tokens >= 1:
        yield from _whole("stop.min_tokens", draft.min_tokens, 0, most)
    if len(draft.stop_token_ids) > limits.MAX_STOP_TOKEN_IDS:
        reason = f"at most {limits.MAX_STOP_TOKEN_IDS}, got {len(draft.stop_token_ids)}"
        yield FieldViolation("stop.stop_token_ids", reason)
    else:
        yield from token_violations("stop.stop_token_ids", draft.stop_token_ids, model.vocab_size)
    yield from _stop_string_violations(draft.stop_strings)


def _most_tokens(draft: RequestDraft, model: ModelLimits) -> int:
    """Of an answer, whatever the prompt's length."""
    limit = model.max_context_tokens
    return min(draft.max_tokens or model.default_max_tokens or limit, limit)


def _stop_string_violations(stop_strings: tuple[str, ...]) -> Iterator[FieldViolation]:
    if len(stop_strings) > limits.MAX_STOP_STRINGS:
        reason = f"at most {limits.MAX_STOP_STRINGS}, got {len(stop_strings)}"
        yield FieldViolation("stop.stop_strings", reason)
        return
    for i, text in enumerate(stop_strings):
        if not 1 <= len(text) <= limits.MAX_STOP_STRING_CHARS:
            reason = f"must have 1 to {limits.MAX_STOP_STRING_CHARS} characters, got {len(text)}"
            yield FieldViolation(f"stop.stop_strings[{i}]", reason)
        elif not _is_unicode(text):
            yield FieldViolation(f"stop.stop_strings[{i}]", "must be valid Unicode")


def _resume_violations(
    draft: RequestDraft, resume: Resume, model: ModelLimits
) -> Iterator[FieldViolation]:
    yield from _whole("resume.epoch", resume.epoch, 1, 2**32 - 1)
    if draft.num_choices != 1:
        yield FieldViolation("num_choices", f"must be 1 to resume, got {draft.num_choices}")
    if not draft.request_id:
        yield FieldViolation("request_id", "must be given to resume")
    if draft.seed is None and draft.sampling.temperature > 0:
        yield FieldViolation("sampling.seed", "must be given to resume: the one in `accepted`")
    name = "resume.output_token_ids"
    yield from token_violations(name, resume.output_token_ids, model.vocab_size)
    most = _most_tokens(draft, model)
    if len(resume.output_token_ids) > most:
        reason = f"{len(resume.output_token_ids)} tokens, more than the answer's limit of {most}"
        yield FieldViolation(name, reason)


def _length_violations(
    draft: RequestDraft, num_prompt_tokens: int, model: ModelLimits
) -> Iterator[FieldViolation]:
    limit = model.max_context_tokens
    if not num_prompt_tokens:
        yield FieldViolation("prompt", "must have at least 1 token, got 0")
    elif num_prompt_tokens >= limit:
        reason = f"{num_prompt_tokens} tokens leave no room in a context of {limit} tokens"
        yield FieldViolation("prompt", reason)
    elif draft.max_tokens is not None and num_prompt_tokens + draft.max_tokens > limit:
        reason = (
            f"{num_prompt_tokens} prompt tokens + {draft.max_tokens} exceed"
            f" the context of {limit} tokens"
        )
        yield FieldViolation("stop.max_tokens", reason)


def token_violations(
    name: str, token_ids: Iterable[int], vocab_size: int
) -> Iterator[FieldViolation]:
    """The first id that no token has, and how many more there are."""
    limit = min(vocab_size, MAX_TOKEN_ID + 1)
    bad = [(i, token_id) for i, token_id in enumerate(token_ids) if not 0 <= token_id < limit]
    if bad:
        i, token_id = bad[0]
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        reason = f"token id {token_id} is not below the vocabulary size {vocab_size}{more}"
        yield FieldViolation(f"{name}[{i}]", reason)


def _whole(name: str, value: int | None, low: int, high: int) -> Iterator[FieldViolation]:
    if value is not None and not low <= value <= high:
        yield FieldViolation(name, f"must be {low} to {high}, got {value}")


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
