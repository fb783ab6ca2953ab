"""Leave to fetch: good for exactly what was granted, by whom has the key, for so long."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.capability import (
    SLACK_S,
    TOKEN_BYTES,
    Capabilities,
    CapabilityExpired,
    CapabilityRefused,
    Grant,
    Purpose,
    check,
    sign,
    subkey,
)
from core.ids import HandoffId
from core.request import Fence
from core.work import Peer

KEY = bytes(range(32))
OTHER_KEY = bytes(32)
NOW_S = 1_700_000_000.0
GRANT = Grant(
    purpose=Purpose.HANDOFF,
    handoff_id=HandoffId("request/0"),
    fence=Fence(1, 2),
    source_id="prefill-0",
    source_address="10.0.0.1:7000",
    fetcher_id="decode-0",
)
OTHERS = [
    # id                        of what
    ("another purpose", {"purpose": Purpose.PREFIX}),
    ("another handoff", {"handoff_id": HandoffId("request/1")}),
    ("an earlier attempt", {"fence": Fence(1, 1)}),
    ("a later attempt", {"fence": Fence(1, 3)}),
    ("another epoch", {"fence": Fence(2, 2)}),
    ("another source", {"source_id": "prefill-1"}),
    ("another address of it", {"source_address": "10.0.0.1:7001"}),
    ("another fetcher", {"fetcher_id": "decode-1"}),
    (
        "the same characters cut elsewhere",
        {"source_id": "prefill-010.0.0.1:7", "source_address": "000"},
    ),
]
NAMES = st.text("abc/:.", max_size=4)
GRANTS = st.builds(
    Grant,
    purpose=st.sampled_from(Purpose),
    handoff_id=NAMES,
    fence=st.builds(Fence, st.integers(0, 3), st.integers(1, 3)),
    source_id=NAMES,
    source_address=NAMES,
    fetcher_id=NAMES,
)


def refusal(token: bytes, grant: Grant = GRANT, now_s: float = NOW_S) -> CapabilityRefused:
    with pytest.raises(CapabilityRefused) as caught:
        check(KEY, token, grant, now_s)
    assert caught.value.status == "PERMISSION_DENIED"
    return caught.value


def test_what_was_granted_is_allowed_until_it_ends() -> None:
    token = sign(KEY, GRANT, NOW_S + 10)
    assert len(token) == TOKEN_BYTES
    for _ in range(2):  # a stream that broke is opened again
        check(KEY, token, GRANT, NOW_S + 9.9)
    assert isinstance(refusal(token, now_s=NOW_S + 10), CapabilityExpired)


@pytest.mark.parametrize("changes", [o[1] for o in OTHERS], ids=[o[0] for o in OTHERS])
def test_leave_for_one_thing_is_none_for_another(changes: dict[str, object]) -> None:
    token = sign(KEY, GRANT, NOW_S + 10)
    error = refusal(token, replace(GRANT, **changes))  # type: ignore[arg-type]
    assert not isinstance(error, CapabilityExpired)


@given(GRANTS, GRANTS)
def test_a_token_fits_its_own_grant_only(one: Grant, other: Grant) -> None:
    token = sign(KEY, one, NOW_S + 10)
    check(KEY, token, one, NOW_S)
    if one != other:
        refusal(token, other)


@given(st.integers(0, TOKEN_BYTES * 8 - 1))
def test_no_bit_of_a_token_can_be_changed(bit: int) -> None:
    token = bytearray(sign(KEY, GRANT, NOW_S + 10))
    token[bit // 8] ^= 1 << bit % 8
    refusal(bytes(token))


@given(st.binary(max_size=300))
def test_garbage_is_refused(token: bytes) -> None:
    refusal(token)


def test_an_expiry_nobody_signed_is_not_worth_an_answer() -> None:
    forged = sign(OTHER_KEY, GRANT, NOW_S - 10)
    assert type(refusal(forged)) is CapabilityRefused


def test_what_is_refused_is_not_told_the_secret() -> None:
    for token in (b"", bytes(TOKEN_BYTES), sign(OTHER_KEY, GRANT, NOW_S), sign(KEY, GRANT, 0.0)):
        said = str(refusal(token))
        assert sign(KEY, GRANT, NOW_S).hex() not in said
        assert all(word not in said for word in (KEY.hex(), subkey(KEY).hex(), token.hex() or "?"))


@pytest.mark.parametrize("expires_at_s", [-1.0, 0.0, 1e30])
def test_any_expiry_can_be_signed(expires_at_s: float) -> None:
    token = sign(KEY, GRANT, expires_at_s)
    if expires_at_s > NOW_S:
        check(KEY, token, GRANT, NOW_S)
    else:
        assert isinstance(refusal(token), CapabilityExpired)


def test_the_key_is_its_own_and_of_one_length() -> None:
    assert subkey(KEY) != KEY
    with pytest.raises(ValueError, match="32 bytes is needed, got 31"):
        subkey(bytes(31))


# --- both ends ----------------------------------------------------------------------------------


class Trio:
    """A router, the source and the fetching side, each with its own idea of the time."""

    def __init__(self, source_s: float = NOW_S, fetcher_s: float = NOW_S) -> None:
        own = Peer(GRANT.source_id, GRANT.source_address)
        self.router = Capabilities(KEY, lambda: NOW_S)
        self.source = Capabilities(KEY, lambda: source_s, own=own)
        self.fetcher = Capabilities(
            KEY, lambda: fetcher_s, own=Peer(GRANT.fetcher_id, "10.0.0.2:7000")
        )

    def peer(self) -> Peer:
        """As the router tells the fetching side."""
        token = self.router.sign_for(GRANT, lifetime_s=5.0)
        return Peer(GRANT.source_id, GRANT.source_address, token)

    def check_peer(self, peer: Peer) -> None:
        self.fetcher.check_peer(
            peer, purpose=GRANT.purpose, handoff_id=GRANT.handoff_id, fence=GRANT.fence
        )

    def check_fetch(self, token: bytes, fetcher_id: str = GRANT.fetcher_id) -> None:
        self.source.check_fetch(
            token,
            purpose=GRANT.purpose,
            handoff_id=GRANT.handoff_id,
            fence=GRANT.fence,
            fetcher_id=fetcher_id,
        )


def test_both_ends_accept_what_a_router_signed() -> None:
    trio = Trio()
    trio.check_peer(trio.peer())
    trio.check_fetch(trio.peer().capability)


def test_an_address_that_no_router_told_is_not_dialled() -> None:
    trio = Trio()
    with pytest.raises(CapabilityRefused):
        trio.check_peer(replace(trio.peer(), address="10.0.0.66:7000"))


def test_a_capability_of_another_fetcher_is_of_no_use() -> None:
    trio = Trio()
    with pytest.raises(CapabilityRefused):
        trio.check_fetch(trio.peer().capability, fetcher_id="decode-1")


@pytest.mark.parametrize("skew_s", [-60.0, 60.0])
def test_a_minute_of_disagreement_does_no_harm(skew_s: float) -> None:
    trio = Trio(source_s=NOW_S + skew_s, fetcher_s=NOW_S - skew_s)
    trio.check_peer(trio.peer())
    trio.check_fetch(trio.peer().capability)


def test_it_ends_after_the_request_and_the_slack() -> None:
    trio = Trio(source_s=NOW_S + 5.0 + SLACK_S)
    with pytest.raises(CapabilityExpired):
        trio.check_fetch(trio.peer().capability)


def test_a_changed_key_leaves_what_the_last_one_signed_good_and_nothing_older() -> None:
    trio = Trio()
    old = trio.peer()
    for keys in ([OTHER_KEY], [OTHER_KEY, OTHER_KEY]):
        for key in keys:
            trio.fetcher.change_key(key)
        trio.check_peer(old)
    trio.router.change_key(OTHER_KEY)
    trio.check_peer(trio.peer())
    trio.fetcher.change_key(b"x" * 32)
    with pytest.raises(CapabilityRefused):
        trio.check_peer(old)
