"""Requests and their parts between `core` and the wire; what comes in is checked against bounds.

`x_to_pb` trusts its argument, `x_from_pb` trusts nothing and raises InvalidRequest.
"""

import re
from collections.abc import Mapping, Sequence

from core.ids import Fingerprint, HandoffId, RouterId
from core.limits import (
    MAX_GRAMMAR_CHARS,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_NUM_CHOICES,
    MAX_PRIORITY,
    MAX_REQUEST_ID_CHARS,
    MAX_STOP_TOKEN_IDS,
    MAX_TEMPERATURE,
    MAX_TENANT_CHARS,
    MAX_TIMEOUT_S,
)
from core.member import INSTANCE_ID, MAX_ADDRESSES, is_address
from core.model_spec import ModelSpec
from core.request import (
    Fence,
    FinishReason,
    Grammar,
    GrammarKind,
    SamplingParams,
    StopParams,
    TokenLogprobs,
)
from core.work import Peer, WorkRequest
from rpc.bounds import Bounds, known
from rpc.pb import types_pb2, workers_pb2

MAX_HANDOFF_ID_CHARS = MAX_REQUEST_ID_CHARS + 32
MAX_EPOCH = 2**31 - 1
MAX_ATTEMPT = 2**31 - 1
MIN_CAPABILITY_BYTES = 16
MAX_CAPABILITY_BYTES = 256

_HANDOFF_ID = re.compile(rf"[A-Za-z0-9._:/-]{{1,{MAX_HANDOFF_ID_CHARS}}}", re.ASCII)
_MEMBER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}", re.ASCII)
_TENANT = re.compile(rf"[A-Za-z0-9._:-]{{0,{MAX_TENANT_CHARS}}}", re.ASCII)
_FINGERPRINT = re.compile(r"[!-~]{1,256}", re.ASCII)
SAMPLING_NUMBERS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
"""Fields of SamplingParams whose names and values are the same here and on the wire."""
_SAMPLING_FIELDS = (*SAMPLING_NUMBERS, "seed")

_FINISH_TO_PB: Mapping[FinishReason | None, "types_pb2.FinishReason.ValueType"] = {
    None: types_pb2.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: types_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: types_pb2.FINISH_REASON_LENGTH,
}


def fence_to_pb(fence: Fence) -> types_pb2.Fence:
    """Attempt of a request."""
    return types_pb2.Fence(epoch=fence.epoch, attempt=fence.attempt)


def fence_from_pb(message: types_pb2.Fence) -> Fence:
    """Attempt of a request; attempts count from 1."""
    bounds = Bounds()
    bounds.number("fence.epoch", message.epoch, 0, MAX_EPOCH)
    bounds.number("fence.attempt", message.attempt, 1, MAX_ATTEMPT)
    bounds.settle()
    return Fence(message.epoch, message.attempt)


def handoff_id_from_pb(value: str) -> HandoffId:
    """An id that is safe to keep as a key and to log."""
    bounds = Bounds()
    bounds.text("handoff_id", value, _HANDOFF_ID)
    bounds.settle()
    return HandoffId(value)


def router_id_from_pb(value: str) -> RouterId:
    """As registered."""
    bounds = Bounds()
    bounds.text("router_id", value, _MEMBER_ID)
    bounds.settle()
    return RouterId(value)


def peer_to_pb(peer: Peer) -> workers_pb2.KvSource:
    """Where KV is to be fetched."""
    return workers_pb2.KvSource(
        instance_id=peer.instance_id, addresses=[peer.address], capability=peer.capability
    )


def peer_from_pb(field: str, message: workers_pb2.KvSource) -> Peer:
    """Where KV is to be fetched, by the leader's address: one rank each so far. Well formed, but
    not to be dialled before its capability is checked."""
    bounds = Bounds()
    bounds.text(f"{field}.instance_id", message.instance_id, INSTANCE_ID)
    if bounds.count(f"{field}.addresses", message.addresses, 1, MAX_ADDRESSES) and not all(
        map(is_address, message.addresses)
    ):
        bounds.refuse(f"{field}.addresses", "must each be host:port")
    bounds.number(
        f"{field}.capability",
        len(message.capability),
        MIN_CAPABILITY_BYTES,
        MAX_CAPABILITY_BYTES,
    )
    bounds.settle()
    return Peer(message.instance_id, message.addresses[0], message.capability)


def finish_reason_to_pb(reason: FinishReason | None) -> "types_pb2.FinishReason.ValueType":
    """None: the answer goes on."""
    return _FINISH_TO_PB[reason]


def finish_reason_from_pb(value: int) -> FinishReason | None:
    """None: the answer goes on."""
    return known("finish_reason", _FINISH_TO_PB, value)


def sampling_to_pb(sampling: SamplingParams) -> types_pb2.SamplingParams:
    """Every field present."""
    return types_pb2.SamplingParams(
        **{name: getattr(sampling, name) for name in _SAMPLING_FIELDS},
        logit_bias=dict(sampling.logit_bias),
        num_logprobs=sampling.num_logprobs,
        grammar=None if sampling.grammar is None else grammar_to_pb(sampling.grammar),
    )


def sampling_from_pb(message: types_pb2.SamplingParams, vocab_size: int) -> SamplingParams:
    """A fully specified message, as routers send to workers."""
    bounds = Bounds()
    for name in _SAMPLING_FIELDS:
        if not message.HasField(name):  # type: ignore[arg-type]  # a literal of the same names
            bounds.refuse(f"sampling.{name}", "must be present")
    bounds.number("sampling.temperature", message.temperature, 0.0, MAX_TEMPERATURE)
    bounds.number("sampling.top_k", message.top_k, 0, vocab_size)
    bounds.above("sampling.top_p", message.top_p, 0.0, 1.0)
    bounds.number("sampling.min_p", message.min_p, 0.0, 1.0)
    bounds.above("sampling.repetition_penalty", message.repetition_penalty, 0.0, 10.0)
    bounds.number("sampling.presence_penalty", message.presence_penalty, -2.0, 2.0)
    bounds.number("sampling.frequency_penalty", message.frequency_penalty, -2.0, 2.0)
    bias: dict[int, float] = {}
    if bounds.count("sampling.logit_bias", list(message.logit_bias), 0, MAX_LOGIT_BIAS):
        bias = dict(message.logit_bias)
        bounds.token_ids("sampling.logit_bias", tuple(bias), vocab_size)
        for value in bias.values():
            bounds.number("sampling.logit_bias", value, -100.0, 100.0)
    bounds.number("sampling.num_logprobs", message.num_logprobs, 0, MAX_LOGPROBS)
    bounds.settle()
    return SamplingParams(
        **{name: getattr(message, name) for name in _SAMPLING_FIELDS},
        logit_bias=bias,
        num_logprobs=message.num_logprobs if message.HasField("num_logprobs") else None,
        grammar=grammar_from_pb(message.grammar) if message.HasField("grammar") else None,
    )


def grammar_to_pb(grammar: Grammar) -> types_pb2.Grammar:
    """What an answer must match."""
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return types_pb2.Grammar(json_schema=grammar.text)
        case GrammarKind.REGEX:
            return types_pb2.Grammar(regex=grammar.text)
        case GrammarKind.JSON_OBJECT:
            return types_pb2.Grammar(json_object=True)


def grammar_from_pb(message: types_pb2.Grammar) -> Grammar:
    """What an answer must match; whether it makes sense is for who compiles it to say."""
    kind = message.WhichOneof("kind")
    bounds = Bounds()
    if kind is None:
        bounds.refuse("sampling.grammar", "one of json_schema, regex and json_object is needed")
        bounds.settle()
        raise AssertionError("settled")
    text = "" if kind == "json_object" else getattr(message, kind)
    bounds.count("sampling.grammar", text, 0, MAX_GRAMMAR_CHARS)
    bounds.settle()
    return Grammar(GrammarKind(kind), text)


def logprobs_to_pb(logprobs: TokenLogprobs) -> types_pb2.TokenLogprobs:
    """How likely one output token was."""
    top = [types_pb2.Logprob(token_id=i, logprob=value) for i, value in logprobs.top]
    return types_pb2.TokenLogprobs(logprob=logprobs.logprob, top=top)


def logprobs_from_pb(message: types_pb2.TokenLogprobs) -> TokenLogprobs:
    """How likely one output token was."""
    bounds = Bounds()
    bounds.count("logprobs.top", message.top, 0, MAX_LOGPROBS)
    bounds.settle()
    top = tuple((entry.token_id, entry.logprob) for entry in message.top)
    return TokenLogprobs(message.logprob, top)


def stop_to_pb(stop: StopParams) -> types_pb2.StopParams:
    """What workers judge; strings are the router's own and stay there."""
    return types_pb2.StopParams(
        max_tokens=stop.max_tokens, min_tokens=stop.min_tokens, stop_token_ids=stop.stop_token_ids
    )


def stop_from_pb(message: types_pb2.StopParams, spec: ModelSpec) -> StopParams:
    """A fully specified message without strings, as routers send to workers."""
    bounds = Bounds()
    bounds.number("stop.max_tokens", message.max_tokens, 1, spec.max_context_tokens)
    bounds.number("stop.min_tokens", message.min_tokens, 0, max(0, message.max_tokens))
    # The model's own end-of-sequence ids come on top of what a client may name.
    limit = MAX_STOP_TOKEN_IDS + len(spec.eos_token_ids)
    if bounds.count("stop.stop_token_ids", message.stop_token_ids, 0, limit):
        bounds.token_ids("stop.stop_token_ids", message.stop_token_ids, spec.vocab_size)
    bounds.count("stop.stop_strings", message.stop_strings, 0, 0)
    bounds.settle()
    return StopParams(
        max_tokens=message.max_tokens,
        min_tokens=message.min_tokens,
        stop_token_ids=tuple(message.stop_token_ids),
    )


def work_to_pb(work: WorkRequest) -> workers_pb2.WorkRequest:
    """One attempt."""
    return workers_pb2.WorkRequest(
        handoff_id=work.handoff_id,
        fence=fence_to_pb(work.fence),
        router_id=work.router_id,
        prompt_token_ids=work.prompt_token_ids,
        output_token_ids=work.output_token_ids,
        sampling=sampling_to_pb(work.sampling),
        stop=stop_to_pb(work.stop),
        child_index=work.child_index,
        timeout_s=work.timeout_s,
        fingerprint=work.fingerprint,
        tenant=work.tenant,
        priority=work.priority,
    )


def work_from_pb(message: workers_pb2.WorkRequest, spec: ModelSpec) -> WorkRequest:
    """One attempt, checked against the bounds of the model that is to serve it."""
    # First: how many tokens may be forced follows from it.
    stop = stop_from_pb(message.stop, spec)
    bounds = Bounds()
    bounds.number("child_index", message.child_index, 0, MAX_NUM_CHOICES - 1)
    bounds.above("timeout_s", message.timeout_s, 0.0, MAX_TIMEOUT_S)
    bounds.text("fingerprint", message.fingerprint, _FINGERPRINT)
    if stop.min_tokens and message.sampling.HasField("grammar"):
        bounds.refuse("stop.min_tokens", "cannot be combined with a grammar")
    bounds.text("tenant", message.tenant, _TENANT)
    bounds.number("priority", message.priority, -MAX_PRIORITY, MAX_PRIORITY)
    _check_tokens(bounds, message, spec)
    bounds.settle()
    return WorkRequest(
        handoff_id=handoff_id_from_pb(message.handoff_id),
        fence=fence_from_pb(message.fence),
        router_id=router_id_from_pb(message.router_id),
        prompt_token_ids=tuple(message.prompt_token_ids),
        output_token_ids=tuple(message.output_token_ids),
        sampling=sampling_from_pb(message.sampling, spec.vocab_size),
        stop=stop,
        child_index=message.child_index,
        timeout_s=message.timeout_s,
        fingerprint=Fingerprint(message.fingerprint),
        tenant=message.tenant,
        priority=message.priority,
    )


def output_token_ids_from_pb(ids: Sequence[int], spec: ModelSpec) -> tuple[int, ...]:
    """Delivered tokens, as a Retarget repeats them."""
    bounds = Bounds()
    if bounds.count("output_token_ids", ids, 0, spec.max_context_tokens):
        bounds.token_ids("output_token_ids", ids, spec.vocab_size)
    bounds.settle()
    return tuple(ids)


def _check_tokens(bounds: Bounds, message: workers_pb2.WorkRequest, spec: ModelSpec) -> None:
    prompt, forced = message.prompt_token_ids, message.output_token_ids
    limit, max_tokens = spec.max_context_tokens, message.stop.max_tokens
    if bounds.count("prompt_token_ids", prompt, 1, limit):
        bounds.token_ids("prompt_token_ids", prompt, spec.vocab_size)
        if len(prompt) + max_tokens > limit:
            bounds.refuse(
                "stop.max_tokens",
                f"{len(prompt)} prompt tokens and {max_tokens} more exceed the context of {limit}",
            )
    # All of them delivered already would leave nothing to compute.
    if bounds.count("output_token_ids", forced, 0, max_tokens - 1):
        bounds.token_ids("output_token_ids", forced, spec.vocab_size)
