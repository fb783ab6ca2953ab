"""Who takes part in a cluster: what each process tells the others about itself."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from core.errors import BatonError
from core.ids import Fingerprint, InstanceId

MAX_MEMBER_JSON_BYTES = 64 * 1024
"""64 addresses of 256 characters and the rest, with room for keys of newer peers."""
MAX_ADDRESSES = 64
MAX_STRING_CHARS = 256
MAX_NUMBER = 2**31 - 1
"""Blocks, tokens: more cannot be told apart from damage."""

INSTANCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}", re.ASCII)
_ADDRESS = re.compile(
    r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?):([0-9]{1,5})",
    re.ASCII,
)


class Role(StrEnum):
    """An instance's budget between the phases; every instance can do both. Routers do neither."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"
    ROUTER = "router"


class InvalidMember(BatonError, ValueError):
    """A member record that breaks its bounds; lists every problem."""

    status = "INVALID_ARGUMENT"

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One process group (an instance or a router) as the registry knows it; valid or not built."""

    instance_id: InstanceId
    role: Role
    addresses: tuple[str, ...]
    """host:port of the gRPC server, one per rank, leader first."""
    fingerprint: Fingerprint
    """Empty for routers."""
    model: str
    """Empty for routers."""
    incarnation: str
    """Random per process start: a restarted process is a new member."""
    host_id: str
    """Equal on one host: decides whether carriers through shared memory are possible."""
    protocol_version: int
    tp: int = 1
    pp: int = 1
    block_size: int
    """Tokens. 0 for routers, as the next two."""
    max_context_tokens: int
    num_blocks: int

    def __post_init__(self) -> None:
        """Refuse what `from_json` would refuse: what can be announced can be read."""
        if problems := tuple(_problems(self)):
            raise InvalidMember(problems)

    @property
    def leader_address(self) -> str:
        """Where rank 0 listens."""
        return self.addresses[0]

    def to_json(self) -> str:
        """One line; equal members give equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Member":
        """Read what the store holds, trusting none of it; keys of newer peers are ignored.

        Raises InvalidMember, and nothing else.
        """
        record = _parse(text)
        if problems := tuple(_type_problems(record)):
            raise InvalidMember(problems)
        known = {name: record[name] for name in _TYPES if name in record}
        known["addresses"] = tuple(known["addresses"])
        known["role"] = Role(known["role"])
        return cls(**known)


_TYPES: Mapping[str, type] = {
    "instance_id": str,
    "role": str,
    "addresses": list,
    "fingerprint": str,
    "model": str,
    "incarnation": str,
    "host_id": str,
    "protocol_version": int,
    "tp": int,
    "pp": int,
    "block_size": int,
    "max_context_tokens": int,
    "num_blocks": int,
}
_OPTIONAL = frozenset({"tp", "pp"})
_MAY_BE_EMPTY = frozenset({"fingerprint", "model"})


def _parse(text: str) -> dict[str, Any]:
    # Characters first: encoding must not allocate for a text that is too long anyway.
    if len(text) > MAX_MEMBER_JSON_BYTES:
        raise InvalidMember((f"record of {len(text)} bytes, limit {MAX_MEMBER_JSON_BYTES}",))
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidMember(("record is not JSON",)) from None
    if not isinstance(record, dict):
        raise InvalidMember(("record is not a JSON object",))
    return record


def _type_problems(record: Mapping[str, Any]) -> Iterator[str]:
    for name, kind in _TYPES.items():
        if name not in record:
            if name not in _OPTIONAL:
                yield f"{name} is missing"
        # `type`, not isinstance: True is no number.
        elif type(record[name]) is not kind:
            yield f"{name} must be {kind.__name__}, got {type(record[name]).__name__}"
    addresses = record.get("addresses")
    if isinstance(addresses, list) and not all(type(a) is str for a in addresses):
        yield "addresses must be strings"
    role = record.get("role")
    if isinstance(role, str) and role not in set(Role):
        yield f"role must be one of {', '.join(Role)}"


def _problems(member: Member) -> Iterator[str]:
    if not INSTANCE_ID.fullmatch(member.instance_id):
        yield "instance_id must be 1 to 128 of letters, digits and ._:/@-"
    for name in ("fingerprint", "model", "incarnation", "host_id"):
        yield from _string_problems(name, getattr(member, name), member.role)
    yield from _address_problems(member)
    yield from _number_problems(member)


def _string_problems(name: str, value: str, role: Role) -> Iterator[str]:
    if len(value) > MAX_STRING_CHARS:
        yield f"{name} has {len(value)} characters, limit {MAX_STRING_CHARS}"
    elif not value.isprintable():
        yield f"{name} holds characters that cannot be printed"
    elif not value and not (role is Role.ROUTER and name in _MAY_BE_EMPTY):
        yield f"{name} is empty"


def _address_problems(member: Member) -> Iterator[str]:
    num_addresses, num_ranks = len(member.addresses), member.tp * member.pp
    if not 1 <= num_addresses <= MAX_ADDRESSES:
        yield f"{num_addresses} addresses, must be 1 to {MAX_ADDRESSES}"
    elif member.role is not Role.ROUTER and num_addresses != num_ranks:
        yield f"{num_addresses} addresses for tp {member.tp} × pp {member.pp} ranks"
    for i, address in enumerate(member.addresses[:MAX_ADDRESSES]):
        if not is_address(address):
            yield f"addresses[{i}] is not host:port"


def _number_problems(member: Member) -> Iterator[str]:
    # A router computes nothing; of an instance a zero would be divided by.
    least = 0 if member.role is Role.ROUTER else 1
    bounds = {
        "protocol_version": (1, MAX_NUMBER),
        "tp": (1, MAX_ADDRESSES),
        "pp": (1, MAX_ADDRESSES),
        "block_size": (least, MAX_NUMBER),
        "max_context_tokens": (least, MAX_NUMBER),
        "num_blocks": (least, MAX_NUMBER),
    }
    for name, (low, high) in bounds.items():
        if not low <= getattr(member, name) <= high:
            yield f"{name} must be {low} to {high}"


def is_address(text: str) -> bool:
    """Whether `text` is host:port: a name, an IPv4 or a bracketed IPv6 address, port 1 to 65535.

    Nothing that gRPC would read as another scheme (`unix:`, `dns:///`) passes.
    """
    if len(text) > MAX_STRING_CHARS:
        return False
    match = _ADDRESS.fullmatch(text)
    return match is not None and 1 <= int(match[1]) <= 65535
