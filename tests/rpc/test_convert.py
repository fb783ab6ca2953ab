"""What goes out comes back the same; what breaks a bound is refused, by name."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import pytest
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from core.blocks import BlockState
from core.errors import InvalidRequest
from core.ids import Fingerprint, HandoffId, RouterId
from core.load import Integrity, Load
from core.member import Role
from core.model_spec import ModelSpec
from core.request import Fence, FinishReason, SamplingParams, StopParams
from core.timing import HandoffTiming, PrefillTiming
from core.work import KvLostReason, WorkRequest
from rpc import convert as c
from rpc import convert_report as r
from rpc.pb import cluster_pb2, types_pb2, workers_pb2

SPEC = ModelSpec(
    name="m",
    architecture="a",
    num_layers=1,
    num_query_heads=1,
    num_kv_heads=1,
    head_dim=8,
    hidden_size=8,
    vocab_size=1000,
    max_context_tokens=64,
    eos_token_ids=(2,),
    dtype="float32",
    weights_digest="",
)
tokens = st.integers(0, SPEC.vocab_size - 1)
counts = st.integers(0, 2**32 - 1)
durations = st.floats(0, 86_400)
samplings = st.builds(
    SamplingParams,
    temperature=st.floats(0, 100),
    top_k=st.integers(0, SPEC.vocab_size),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0, 10, exclude_min=True),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    logit_bias=st.dictionaries(tokens, st.floats(-100, 100), max_size=5),
    seed=st.integers(0, 2**64 - 1),
)
stops = st.builds(
    StopParams,
    max_tokens=st.integers(5, 32),
    min_tokens=st.integers(0, 5),
    stop_token_ids=st.lists(tokens, max_size=5).map(tuple),
)
works = st.builds(
    WorkRequest,
    handoff_id=st.from_regex(r"[A-Za-z0-9._:-]{1,128}/[0-9]{1,2}", fullmatch=True).map(HandoffId),
    fence=st.builds(Fence, st.integers(0, 2**31 - 1), st.integers(1, 2**31 - 1)),
    router_id=st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True).map(RouterId),
    prompt_token_ids=st.lists(tokens, min_size=1, max_size=32).map(tuple),
    output_token_ids=st.lists(tokens, max_size=4).map(tuple),
    sampling=samplings,
    stop=stops,
    child_index=st.integers(0, 15),
    timeout_s=st.floats(0, 86_400, exclude_min=True),
    fingerprint=st.just(Fingerprint("f" * 64)),
)
loads = st.builds(
    Load,
    num_prefilling=counts,
    num_pending_prompt_tokens=st.integers(0, 2**40),
    num_incoming=counts,
    num_decoding=counts,
    num_context_tokens=st.integers(0, 2**40),
    num_free_blocks=st.just(3),
    num_blocks=st.integers(3, 2**32 - 1),
    draining=st.booleans(),
)
timings = st.builds(
    HandoffTiming,
    **{name: durations for name in HandoffTiming.__slots__ if name.endswith("_s")},
    num_kv_bytes=st.integers(0, 2**50),
    num_segments=counts,
    num_kv_tokens=counts,
    carrier=st.just("grpc"),
)
integrities = st.builds(
    Integrity,
    blocks=st.dictionaries(st.sampled_from(BlockState), counts),
    num_leases=counts,
    problem=st.text(st.characters(codec="ascii"), max_size=9),
    loop_lag_p99_s=durations,
    num_steps=st.integers(0, 2**64 - 1),
    cpu_s=durations,
    pid=counts,
)


@given(works)
def test_work_comes_back_the_same(work: WorkRequest) -> None:
    message = workers_pb2.WorkRequest.FromString(c.work_to_pb(work).SerializeToString())
    assert c.work_from_pb(message, SPEC) == work
    assert work.num_input_tokens == len(work.input_token_ids)


@given(loads)
def test_load_comes_back_the_same(load: Load) -> None:
    assert r.load_from_pb(r.load_to_pb(load)) == load


@given(timings, st.builds(PrefillTiming, queue_s=durations, compute_s=durations))
def test_timings_come_back_the_same(handoff: HandoffTiming, prefill: PrefillTiming) -> None:
    assert r.handoff_timing_from_pb(r.handoff_timing_to_pb(handoff)) == handoff
    assert r.prefill_timing_from_pb(r.prefill_timing_to_pb(prefill)) == prefill


@given(integrities)
def test_integrity_comes_back_the_same(integrity: Integrity) -> None:
    assert r.integrity_from_pb(r.integrity_to_pb(integrity)) == integrity


ENUMS: list[tuple[str, Any, Callable[[Any], int], Callable[[int], Any], list[Any]]] = [
    ("role", types_pb2.Role, r.role_to_pb, r.role_from_pb, [*Role]),
    (
        "kv lost",
        workers_pb2.KvLostReason,
        r.kv_lost_to_pb,
        r.kv_lost_from_pb,
        [None, *KvLostReason],
    ),
    (
        "finish",
        types_pb2.FinishReason,
        c.finish_reason_to_pb,
        c.finish_reason_from_pb,
        [None, *FinishReason],
    ),
]


@pytest.mark.parametrize(
    ("numbers", "to_pb", "from_pb", "values"), [e[1:] for e in ENUMS], ids=[e[0] for e in ENUMS]
)
def test_enums(
    numbers: EnumTypeWrapper,
    to_pb: Callable[[Any], int],
    from_pb: Callable[[int], Any],
    values: list[Any],
) -> None:
    assert [from_pb(to_pb(value)) for value in values] == values
    unsaid = {0} if None not in values else set()
    assert {to_pb(value) for value in values} | unsaid == set(numbers.values())
    with pytest.raises(InvalidRequest, match="unknown value 99"):
        from_pb(99)


def valid() -> workers_pb2.WorkRequest:
    return c.work_to_pb(
        WorkRequest(
            handoff_id=HandoffId("r/0"),
            fence=Fence(0, 1),
            router_id=RouterId("router"),
            prompt_token_ids=(1, 2, 3),
            output_token_ids=(4,),
            sampling=SamplingParams(),
            stop=StopParams(max_tokens=10),
            timeout_s=1.0,
            fingerprint=Fingerprint("f"),
        )
    )


NAN, INF = float("nan"), float("inf")
BAD = [
    ("handoff_id", ""),
    ("handoff_id", "x" * 161),
    ("handoff_id", "new\nline"),
    ("fence.attempt", 0),
    ("fence.epoch", 2**31),
    ("router_id", ""),
    ("router_id", "a b"),
    ("prompt_token_ids", []),
    ("prompt_token_ids", [1000]),
    ("prompt_token_ids", [1] * 65),
    ("output_token_ids", [2**32 - 1]),
    ("output_token_ids", [1] * 10),
    ("child_index", 16),
    ("timeout_s", 0.0),
    ("timeout_s", NAN),
    ("timeout_s", INF),
    ("fingerprint", ""),
    ("fingerprint", "ü"),
    ("sampling.temperature", NAN),
    ("sampling.temperature", -0.1),
    ("sampling.temperature", INF),
    ("sampling.top_k", 1001),
    ("sampling.top_p", 0.0),
    ("sampling.top_p", 1.1),
    ("sampling.min_p", 1.1),
    ("sampling.repetition_penalty", 0.0),
    ("sampling.presence_penalty", 2.1),
    ("sampling.frequency_penalty", NAN),
    ("sampling.logit_bias", {1000: 1.0}),
    ("sampling.logit_bias", {1: NAN}),
    ("sampling.logit_bias", dict.fromkeys(range(1025), 1.0)),
    ("stop.max_tokens", 0),
    ("stop.max_tokens", -5),
    ("stop.max_tokens", 62),
    ("stop.max_tokens", 2**62),
    ("stop.min_tokens", -1),
    ("stop.min_tokens", 11),
    ("stop.stop_token_ids", [1000]),
    ("stop.stop_token_ids", [1] * 258),
    ("stop.stop_strings", ["no"]),
]


def put(message: Message, path: str, value: object) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        message = getattr(message, parent)
    if not isinstance(value, list | dict):
        setattr(message, name, value)
        return
    message.ClearField(name)
    field = getattr(message, name)
    add = field.extend if isinstance(value, list) else field.update
    add(value)


@pytest.mark.parametrize(("path", "value"), BAD, ids=[f"{p}={str(v)[:20]}" for p, v in BAD])
def test_every_bound_is_named(path: str, value: object) -> None:
    message = valid()
    c.work_from_pb(message, SPEC)
    put(message, path, value)
    with pytest.raises(InvalidRequest) as caught:
        c.work_from_pb(message, SPEC)
    assert path in {violation.field for violation in caught.value.violations}


@pytest.mark.parametrize("name", ["temperature", "top_k", "seed"])
def test_workers_get_everything_said(name: Literal["temperature", "top_k", "seed"]) -> None:
    message = valid()
    message.sampling.ClearField(name)
    with pytest.raises(InvalidRequest, match="must be present"):
        c.work_from_pb(message, SPEC)


def test_errors_do_not_repeat_what_clients_wrote() -> None:
    message = valid()
    message.handoff_id = "canary secret"
    message.prompt_token_ids.append(987654)
    with pytest.raises(InvalidRequest) as caught:
        c.work_from_pb(message, SPEC)
    assert "canary" not in str(caught.value)
    assert "987654" not in str(caught.value)


BAD_REPORTS: list[tuple[str, Callable[[], object]]] = [
    (
        "more free than there are",
        lambda: r.load_from_pb(types_pb2.LoadReport(num_free_blocks=2, num_blocks=1)),
    ),
    (
        "endless context",
        lambda: r.load_from_pb(types_pb2.LoadReport(num_context_tokens=2**64 - 1)),
    ),
    (
        "negative time",
        lambda: r.prefill_timing_from_pb(types_pb2.PrefillTiming(queue_s=-1)),
    ),
    (
        "no number",
        lambda: r.handoff_timing_from_pb(types_pb2.HandoffTiming(sink_tail_s=NAN)),
    ),
    (
        "long carrier",
        lambda: r.handoff_timing_from_pb(types_pb2.HandoffTiming(carrier="x" * 99)),
    ),
    (
        "unknown block state",
        lambda: r.integrity_from_pb(cluster_pb2.Integrity(blocks={"lost": 1})),
    ),
]


@pytest.mark.parametrize("read", [b[1] for b in BAD_REPORTS], ids=[b[0] for b in BAD_REPORTS])
def test_bad_reports(read: Callable[[], object]) -> None:
    with pytest.raises(InvalidRequest):
        read()


@given(st.binary(max_size=300))
def test_any_message_that_parses_is_read_or_refused(data: bytes) -> None:
    for cls, read in (
        (workers_pb2.WorkRequest, lambda m: c.work_from_pb(m, SPEC)),
        (types_pb2.LoadReport, r.load_from_pb),
        (types_pb2.HandoffTiming, r.handoff_timing_from_pb),
        (cluster_pb2.Integrity, r.integrity_from_pb),
    ):
        message: Any = cls()
        try:
            message.ParseFromString(data)
        except DecodeError:
            continue
        with suppress(InvalidRequest):
            read(message)
