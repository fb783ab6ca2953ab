"""What instances say of themselves, between `core` and the wire: load, books, roles, timings."""

from collections.abc import Mapping

from core.blocks import BlockState
from core.limits import MAX_TIMEOUT_S
from core.load import Integrity, Load
from core.member import Member, Role
from core.timing import HandoffTiming, PrefillTiming
from core.work import KvLostReason
from rpc.bounds import Bounds, known, seconds
from rpc.pb import cluster_pb2, types_pb2, workers_pb2

MAX_TOKENS = 2**40
"""Tokens that one instance could ever hold or owe; more is damage."""
MAX_UPTIME_S = 100 * 365 * 86_400.0
MAX_PROBLEM_CHARS = 4096
MAX_CARRIER_CHARS = 32
MAX_KV_BYTES = 2**50

_ROLE_TO_PB: Mapping[Role, "types_pb2.Role.ValueType"] = {
    Role.PREFILL: types_pb2.ROLE_PREFILL,
    Role.DECODE: types_pb2.ROLE_DECODE,
    Role.MIXED: types_pb2.ROLE_MIXED,
    Role.ROUTER: types_pb2.ROLE_ROUTER,
}
_KV_LOST_TO_PB: Mapping[KvLostReason | None, "workers_pb2.KvLostReason.ValueType"] = {
    None: workers_pb2.KV_LOST_REASON_UNSPECIFIED,
    KvLostReason.PEER: workers_pb2.KV_LOST_REASON_PEER,
    KvLostReason.STALLED: workers_pb2.KV_LOST_REASON_STALLED,
    KvLostReason.LEASE: workers_pb2.KV_LOST_REASON_LEASE,
    KvLostReason.CORRUPT: workers_pb2.KV_LOST_REASON_CORRUPT,
}


def role_to_pb(role: Role) -> "types_pb2.Role.ValueType":
    """The part an instance plays."""
    return _ROLE_TO_PB[role]


def role_from_pb(value: int) -> Role:
    """The part an instance plays; it must be said."""
    return known("role", _ROLE_TO_PB, value)


def kv_lost_to_pb(reason: KvLostReason | None) -> "workers_pb2.KvLostReason.ValueType":
    """None: nothing was lost."""
    return _KV_LOST_TO_PB[reason]


def kv_lost_from_pb(value: int) -> KvLostReason | None:
    """None: nothing was lost."""
    return known("kv_lost", _KV_LOST_TO_PB, value)


def load_to_pb(load: Load) -> types_pb2.LoadReport:
    """How busy an instance is."""
    return types_pb2.LoadReport(**{name: getattr(load, name) for name in Load.__slots__})


def load_from_pb(message: types_pb2.LoadReport) -> Load:
    """How busy an instance is."""
    bounds = Bounds()
    for name in (
        "num_pending_prompt_tokens",
        "num_context_tokens",
        "num_queried_tokens",
        "num_hit_tokens",
    ):
        bounds.number(f"load.{name}", getattr(message, name), 0, MAX_TOKENS)
    bounds.number("load.num_free_blocks", message.num_free_blocks, 0, message.num_blocks)
    bounds.settle()
    return Load(**{name: getattr(message, name) for name in Load.__slots__})


def prefill_timing_to_pb(timing: PrefillTiming) -> types_pb2.PrefillTiming:
    """The first token's time on the prefill instance."""
    return types_pb2.PrefillTiming(
        **{name: getattr(timing, name) for name in PrefillTiming.__slots__}
    )


def prefill_timing_from_pb(message: types_pb2.PrefillTiming) -> PrefillTiming:
    """The first token's time on the prefill instance."""
    bounds = Bounds()
    for name in ("queue_s", "compute_s"):
        seconds(bounds, f"timing.{name}", getattr(message, name), MAX_TIMEOUT_S)
    bounds.number("timing.num_hit_tokens", message.num_hit_tokens, 0, MAX_TOKENS)
    bounds.number("timing.num_fetched_tokens", message.num_fetched_tokens, 0, MAX_TOKENS)
    bounds.settle()
    return PrefillTiming(**{name: getattr(message, name) for name in PrefillTiming.__slots__})


def handoff_timing_to_pb(timing: HandoffTiming) -> types_pb2.HandoffTiming:
    """The first gap's time."""
    return types_pb2.HandoffTiming(
        **{name: getattr(timing, name) for name in HandoffTiming.__slots__}
    )


def handoff_timing_from_pb(message: types_pb2.HandoffTiming) -> HandoffTiming:
    """The first gap's time."""
    bounds = Bounds()
    for name in HandoffTiming.__slots__:
        if name.endswith("_s"):
            seconds(bounds, f"timing.{name}", getattr(message, name), MAX_TIMEOUT_S)
    bounds.number("timing.num_kv_bytes", message.num_kv_bytes, 0, MAX_KV_BYTES)
    bounds.count("timing.carrier", message.carrier, 0, MAX_CARRIER_CHARS)
    bounds.settle()
    return HandoffTiming(**{name: getattr(message, name) for name in HandoffTiming.__slots__})


def status_to_pb(member: Member, load: Load, *, connected: bool) -> cluster_pb2.InstanceStatus:
    """One instance, its books not yet told."""
    return cluster_pb2.InstanceStatus(
        instance_id=member.instance_id,
        role=role_to_pb(member.role),
        addresses=member.addresses,
        fingerprint=member.fingerprint,
        model=member.model,
        load=load_to_pb(load),
        connected=connected,
    )


def integrity_to_pb(integrity: Integrity) -> cluster_pb2.Integrity:
    """The books of one instance."""
    values = {name: getattr(integrity, name) for name in Integrity.__slots__}
    values["blocks"] = {str(state): n for state, n in integrity.blocks.items()}
    values["problem"] = integrity.problem[:MAX_PROBLEM_CHARS]
    return cluster_pb2.Integrity(**values)


def integrity_from_pb(message: cluster_pb2.Integrity) -> Integrity:
    """The books of one instance; states of newer peers are refused, not dropped from the sum."""
    bounds = Bounds()
    states = set(BlockState)
    if bounds.count("integrity.blocks", list(message.blocks), 0, len(states)):
        for name in message.blocks:
            if name not in states:
                bounds.refuse("integrity.blocks", f"unknown state of {len(name)} characters")
    bounds.count("integrity.problem", message.problem, 0, MAX_PROBLEM_CHARS)
    seconds(bounds, "integrity.loop_lag_p99_s", message.loop_lag_p99_s, MAX_UPTIME_S)
    seconds(bounds, "integrity.cpu_s", message.cpu_s, MAX_UPTIME_S)
    bounds.settle()
    values = {name: getattr(message, name) for name in Integrity.__slots__}
    values["blocks"] = {BlockState(name): n for name, n in message.blocks.items()}
    return Integrity(**values)
