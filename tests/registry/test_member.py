"""A member record is valid or does not exist; what the store holds is never trusted."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.ids import Fingerprint
from core.member import (
    MAX_ADDRESSES,
    MAX_MEMBER_JSON_BYTES,
    MAX_NUMBER,
    InvalidMember,
    Member,
    Role,
    is_address,
)
from tests.registry.support import WORKER, make_member

RECORD = json.loads(WORKER.to_json())
ROUTER = make_member(
    "router-0",
    role=Role.ROUTER,
    fingerprint=Fingerprint(""),
    model="",
    block_size=0,
    max_context_tokens=0,
    num_blocks=0,
)

printable = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=256)
counts = st.integers(1, MAX_NUMBER)


@st.composite
def members(draw: st.DrawFn) -> Member:
    tp, pp = draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (8, 8)]))
    ports = draw(st.lists(st.integers(1, 65535), min_size=tp * pp, max_size=tp * pp))
    return make_member(
        draw(st.from_regex(r"\A[a-z0-9][A-Za-z0-9._:/@-]{0,127}\Z")),
        role=draw(st.sampled_from([Role.PREFILL, Role.DECODE, Role.MIXED])),
        addresses=tuple(f"host-{i}.example:{port}" for i, port in enumerate(ports)),
        fingerprint=Fingerprint(draw(printable)),
        model=draw(printable),
        incarnation=draw(printable),
        host_id=draw(printable),
        protocol_version=draw(counts),
        tp=tp,
        pp=pp,
        block_size=draw(counts),
        num_blocks=draw(counts),
    )


@given(members())
def test_every_member_that_exists_can_be_written_and_read(member: Member) -> None:
    assert Member.from_json(member.to_json()) == member


def test_a_router_needs_neither_model_nor_blocks() -> None:
    assert Member.from_json(ROUTER.to_json()) == ROUTER


def test_the_largest_member_fits_its_bound() -> None:
    wide = "日" * 256  # six bytes each as JSON
    member = make_member(
        "x" * 128,
        addresses=tuple(f"{'h' * 250}:65535" for _ in range(MAX_ADDRESSES)),
        tp=8,
        pp=8,
        fingerprint=Fingerprint(wide),
        model=wide,
        incarnation=wide,
        host_id=wide,
    )
    assert len(member.to_json()) < MAX_MEMBER_JSON_BYTES // 2


@pytest.mark.parametrize("name", ["tp", "pp"])
def test_what_has_a_default_may_be_missing(name: str) -> None:
    record = {key: value for key, value in RECORD.items() if key != name}
    assert Member.from_json(json.dumps(record)) == WORKER


def test_keys_of_newer_peers_are_ignored() -> None:
    assert Member.from_json(json.dumps({**RECORD, "zone": ["eu", {"rack": 7}]})) == WORKER


BAD = [
    # id                        field                value                     named in the error
    ("id with a newline", "instance_id", "a\nb", "instance_id"),
    ("id with a hash tag", "instance_id", "{a}", "instance_id"),
    ("id too long", "instance_id", "x" * 129, "instance_id"),
    ("id empty", "instance_id", "", "instance_id"),
    ("role of tomorrow", "role", "verify", "role must be one of"),
    ("role mistyped", "role", ["decode"], "role must be str"),
    ("addresses no list", "addresses", "127.0.0.1:1", "addresses must be list"),
    ("addresses of numbers", "addresses", [7000], "addresses must be strings"),
    ("no address", "addresses", [], "0 addresses"),
    ("too many addresses", "addresses", ["a:1"] * 65, "65 addresses"),
    ("more addresses than ranks", "addresses", ["a:1", "a:2"], "2 addresses for tp 1"),
    ("not host:port", "addresses", ["unix:/tmp/x"], r"addresses\[0\]"),
    ("model too long", "model", "m" * 257, "model has 257"),
    ("model with control characters", "model", "a\x1b[2J", "model"),
    ("model a lone surrogate", "model", "\ud800", "model"),
    ("worker without fingerprint", "fingerprint", "", "fingerprint is empty"),
    ("incarnation null", "incarnation", None, "incarnation must be str"),
    ("number as text", "num_blocks", "100", "num_blocks must be int"),
    ("number as bool", "tp", True, "tp must be int"),
    ("number as float", "block_size", 16.0, "block_size must be int"),
    ("number not a number", "block_size", float("nan"), "block_size must be int"),
    ("zero would be divided by", "block_size", 0, "block_size must be 1"),
    ("negative", "num_blocks", -1, "num_blocks"),
    ("huge", "max_context_tokens", 2**31, "max_context_tokens"),
    ("tp past any machine", "tp", 2**31 - 1, "tp must be 1 to 64"),
    ("protocol 0", "protocol_version", 0, "protocol_version"),
]


@pytest.mark.parametrize(("field", "value", "named"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_bad_fields_are_named(field: str, value: object, named: str) -> None:
    with pytest.raises(InvalidMember, match=named):
        Member.from_json(json.dumps({**RECORD, field: value}))


@pytest.mark.parametrize("field", sorted(RECORD.keys() - {"tp", "pp"}))
def test_missing_fields_are_named(field: str) -> None:
    record = {key: value for key, value in RECORD.items() if key != field}
    with pytest.raises(InvalidMember, match=f"{field} is missing"):
        Member.from_json(json.dumps(record))


def test_all_problems_come_at_once() -> None:
    with pytest.raises(InvalidMember) as caught:
        Member.from_json(json.dumps({**RECORD, "tp": "1", "pp": "1", "role": "?"}))
    assert len(caught.value.problems) == 3


def test_what_could_not_be_read_cannot_be_built() -> None:
    with pytest.raises(InvalidMember):
        make_member(addresses=("nowhere",))


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{", "1" * 5000, "[" * 60_000, "x" * (MAX_MEMBER_JSON_BYTES + 1), '"\x00'],
    ids=["empty", "null", "list", "cut", "big number", "deep", "too long", "control"],
)
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(InvalidMember):
        Member.from_json(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(RECORD)), json_values, max_size=4))
def test_any_record_gives_a_member_or_the_typed_error(changes: dict[str, Any]) -> None:
    try:
        member = Member.from_json(json.dumps({**RECORD, **changes}))
    except InvalidMember as error:
        assert error.problems  # noqa: PT017 -- either outcome is right
    else:
        assert Member.from_json(member.to_json()) == member


ADDRESSES = [
    ("127.0.0.1:1", True),
    ("localhost:65535", True),
    ("a-b_c.example.com:7000", True),
    ("[::1]:7000", True),
    ("[fe80::1]:7000", True),
    ("::1:7000", False),
    ("localhost", False),
    ("localhost:", False),
    ("localhost:0", False),
    ("localhost:65536", False),
    ("localhost:٣", False),
    (":7000", False),
    ("-a:1", False),
    ("unix:/tmp/s:1", False),
    ("dns:///evil:1", False),
    ("user@host:1", False),
    ("host:1\n", False),
    ("h" * 300 + ":1", False),
]


@pytest.mark.parametrize(("text", "want"), ADDRESSES)
def test_addresses(text: str, want: bool) -> None:
    assert is_address(text) is want
