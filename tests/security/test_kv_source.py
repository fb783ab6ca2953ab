"""Where KV is fetched from, as a router or a client says it: believed in nothing.

CVE-2026-94622: incomplete parameters of a transfer killed the decode engine.
CVE-2026-94624: a host and port of a client's choice were dialled.
CVE-2026-94627: two transfers with one id leaked KV blocks until the restart.
"""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from core.capability import SLACK_S, Capabilities, Grant, Purpose
from core.ids import HandoffId
from core.request import Fence
from core.work import WorkRequest
from rpc.convert import fence_to_pb, work_to_pb
from rpc.pb import generation_pb2
from rpc.pb import workers_pb2 as pb
from tests.deploy.instances import (
    INSTANCE_ID,
    PREFIX_KEY,
    Running,
    decode_request,
    events,
    kv_source,
    prefill_request,
    stop_request,
    subscribed,
    work,
)
from tests.security.fields import fields
from tests.security.support import Pair, attacked, decoy, status_of
from tests.worker_host.fake_engine import expected_tokens

INVALID, DENIED = "INVALID_ARGUMENT", "PERMISSION_DENIED"
OTHER_KEY = bytes(range(32))


async def told(pair: Pair, request: WorkRequest, source: pb.KvSource | None) -> dict[str, str]:
    """How each call that names a source ended."""
    decode, prefill = pair.decode.decode, pair.prefill.prefill
    message = work_to_pb(request)
    return {
        "Decode": await status_of(decode.Decode(pb.DecodeRequest(work=message, source=source))),
        "Retarget": await status_of(
            decode.Retarget(
                pb.RetargetRequest(
                    handoff_id=request.handoff_id,
                    fence=fence_to_pb(request.fence),
                    source=source,
                )
            )
        ),
        "Prefill": await status_of(
            prefill.Prefill(
                pb.PrefillRequest(
                    # A request without `cached_at` is a good one: it has to be there.
                    work=message,
                    cached_at=source or pb.KvSource(),
                    num_cached_tokens=4,
                )
            )
        ),
    }


def source_of(**wrong: object) -> Callable[[Running], pb.KvSource]:
    """A good one but for these fields."""

    def made(prefill: Running) -> pb.KvSource:
        good = kv_source(prefill, work())
        fields: dict[str, object] = {
            "instance_id": good.instance_id,
            "addresses": list(good.addresses),
            "capability": good.capability,
        }
        return pb.KvSource(**{**fields, **wrong})  # type: ignore[arg-type]

    return made


INCOMPLETE: list[tuple[str, Callable[[Running], pb.KvSource | None]]] = [
    ("nothing", lambda _: None),
    ("an empty one", lambda _: pb.KvSource()),
    ("no id", source_of(instance_id="")),
    ("an odd id", source_of(instance_id="../../etc/passwd")),
    ("an endless id", source_of(instance_id="a" * 100_000)),
    ("no address", source_of(addresses=[])),
    ("an empty address", source_of(addresses=[""])),
    ("no port", source_of(addresses=["127.0.0.1"])),
    ("a port beyond all", source_of(addresses=["127.0.0.1:99999"])),
    ("a path", source_of(addresses=["unix:/run/secret.sock"])),
    ("a URL", source_of(addresses=["http://127.0.0.1:80/"])),
    ("another scheme", source_of(addresses=["dns:///127.0.0.1:80"])),
    ("many addresses", source_of(addresses=["127.0.0.1:80"] * 10_000)),
    ("no capability", source_of(capability=b"")),
    ("a short capability", source_of(capability=b"x" * 15)),
    ("an endless capability", source_of(capability=b"x" * 100_000)),
]


@pytest.mark.parametrize("make", [case[1] for case in INCOMPLETE], ids=[c[0] for c in INCOMPLETE])
async def test_cve_2026_94622_incomplete_parameters_end_their_request_alone(
    make: Callable[[Running], pb.KvSource | None],
) -> None:
    async with attacked() as pair:
        beside = asyncio.ensure_future(pair.serve(work(handoff_id="beside/0")))
        ends = await told(pair, work(), make(pair.prefill))
        assert set(ends.values()) == {INVALID}, ends
        assert await beside == expected_tokens(work().prompt_token_ids, 6)


async def test_cve_2026_94622_no_request_at_all() -> None:
    async with attacked() as pair:
        assert await status_of(pair.decode.decode.Decode(pb.DecodeRequest())) == INVALID
        assert await status_of(pair.decode.decode.Retarget(pb.RetargetRequest())) == INVALID
        assert await status_of(pair.prefill.prefill.Prefill(pb.PrefillRequest())) == INVALID


def grant(address: str, **other: object) -> Grant:
    """Leave for `work()` to fetch there."""
    fields: dict[str, object] = {
        "purpose": Purpose.HANDOFF,
        "handoff_id": work().handoff_id,
        "fence": work().fence,
        "source_id": INSTANCE_ID,
        "source_address": address,
        "fetcher_id": INSTANCE_ID,
    }
    return Grant(**{**fields, **other})  # type: ignore[arg-type]


def signed(leave: Grant, key: bytes = PREFIX_KEY, lifetime_s: float = 10.0) -> bytes:
    return Capabilities(key, lambda: 0.0).sign_for(leave, lifetime_s)


def flipped(token: bytes, at: int) -> bytes:
    return token[:at] + bytes([token[at] ^ 1]) + token[at + 1 :]


# The address dialled is the decoy's; `real` is one that the registry knows.
STOLEN: list[tuple[str, Callable[[str, str], bytes]]] = [
    ("made up", lambda decoy, _: b"x" * 41),
    ("of another size", lambda decoy, _: signed(grant(decoy)) + b"x"),
    ("of a real source", lambda _, real: signed(grant(real))),
    ("with another key", lambda decoy, _: signed(grant(decoy), OTHER_KEY)),
    ("of a key of zeros with a bit", lambda decoy, _: signed(grant(decoy), b"\x01" + bytes(31))),
    ("one bit of the MAC", lambda decoy, _: flipped(signed(grant(decoy)), 40)),
    ("one bit of the expiry", lambda decoy, _: flipped(signed(grant(decoy)), 1)),
    ("another version", lambda decoy, _: flipped(signed(grant(decoy)), 0)),
    ("ended", lambda decoy, _: signed(grant(decoy), lifetime_s=-SLACK_S - 1)),
    ("of another request", lambda decoy, _: signed(grant(decoy, handoff_id=HandoffId("b/0")))),
    ("of another attempt", lambda decoy, _: signed(grant(decoy, fence=Fence(0, 2)))),
    ("of another epoch", lambda decoy, _: signed(grant(decoy, fence=Fence(1, 1)))),
    ("of another source", lambda decoy, _: signed(grant(decoy, source_id="other"))),
    ("for another fetcher", lambda decoy, _: signed(grant(decoy, fetcher_id="other"))),
]


@pytest.mark.parametrize("make", [case[1] for case in STOLEN], ids=[case[0] for case in STOLEN])
async def test_cve_2026_94624_an_address_without_leave_is_not_dialled(
    make: Callable[[str, str], bytes],
) -> None:
    async with attacked() as pair:
        with decoy() as trap:
            token = make(trap.address, pair.prefill.address)
            source = pb.KvSource(
                instance_id=INSTANCE_ID, addresses=[trap.address], capability=token
            )
            ends = await told(pair, work(), source)
            assert set(ends.values()) == {DENIED}, ends


@pytest.mark.parametrize("called", ["Decode", "Retarget", "Prefill"])
async def test_cve_2026_94624_leave_for_one_purpose_is_none_for_the_other(called: str) -> None:
    purpose = Purpose.HANDOFF if called == "Prefill" else Purpose.PREFIX
    async with attacked() as pair:
        with decoy() as trap:
            token = signed(grant(trap.address, purpose=purpose))
            source = pb.KvSource(
                instance_id=INSTANCE_ID, addresses=[trap.address], capability=token
            )
            await _assert_denied(pair, called, source)


async def _assert_denied(pair: Pair, called: str, source: pb.KvSource) -> None:
    request, decode = work(), pair.decode.decode
    if called == "Decode":
        message = pb.DecodeRequest(work=work_to_pb(request), source=source)
        assert await status_of(decode.Decode(message)) == DENIED
    elif called == "Retarget":
        fence = fence_to_pb(request.fence)
        retarget = pb.RetargetRequest(handoff_id=request.handoff_id, fence=fence, source=source)
        assert await status_of(decode.Retarget(retarget)) == DENIED
    else:
        prefill = prefill_request(request)
        prefill.cached_at.CopyFrom(source)
        assert await status_of(pair.prefill.prefill.Prefill(prefill)) == DENIED


async def test_cve_2026_94624_every_address_of_a_source_needs_leave() -> None:
    """Only the leader's is dialled; one behind it is not, whatever it says."""
    async with attacked() as pair:
        with decoy() as trap:
            request = work()
            message = decode_request(request, pair.prefill)
            message.source.addresses.append(trap.address)
            async with subscribed(pair.decode) as router:
                await pair.decode.decode.Decode(message)
                await events(pair.prefill.prefill.Prefill(prefill_request(request)))
                heard = router.heard(request.handoff_id)
                await router.until(lambda: heard.is_over)
            assert heard.token_ids == expected_tokens(request.prompt_token_ids, 6)


PLACES = ("host", "port", "addr", "url", "uri", "endpoint", "peer", "path", "socket", "source")


def test_cve_2026_94624_a_client_has_no_words_for_a_place() -> None:
    requests = [
        method.input_type
        for service in generation_pb2.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    assert requests
    named = [path for request in requests for path, _ in fields(request)]
    assert not [path for path in named if any(place in path[-1] for place in PLACES)]


# --- CVE-2026-94627 ---------------------------------------------------------------------------

ID = "collision/0"
LONGER = tuple(range(20, 45))
COLLISIONS: list[tuple[str, Sequence[WorkRequest]]] = [
    ("the same twice", [work(handoff_id=ID), work(handoff_id=ID)]),
    ("another prompt", [work(handoff_id=ID), work(LONGER, handoff_id=ID)]),
    ("a shorter one", [work(LONGER, handoff_id=ID), work(handoff_id=ID)]),
    ("a later attempt", [work(handoff_id=ID), work(LONGER, handoff_id=ID, attempt=2)]),
    ("an earlier one", [work(handoff_id=ID, attempt=2), work(LONGER, handoff_id=ID)]),
    ("many", [work((*LONGER, n), handoff_id=ID, attempt=1 + n % 3) for n in range(9)]),
]


@pytest.mark.parametrize("requests", [c[1] for c in COLLISIONS], ids=[c[0] for c in COLLISIONS])
async def test_cve_2026_94627_requests_with_one_id_leak_nothing(
    requests: Sequence[WorkRequest],
) -> None:
    async with attacked() as pair, subscribed(pair.decode) as router:
        async with asyncio.TaskGroup() as group:
            for request in requests:
                await status_of(pair.decode.decode.Decode(decode_request(request, pair.prefill)))
                call = pair.prefill.prefill.Prefill(prefill_request(request))
                group.create_task(status_of(call))
            heard = router.heard(ID)
            await router.until(lambda: heard.is_over)
        highest = max(requests, key=lambda request: request.fence)
        await pair.decode.decode.Stop(stop_request(highest))
        # Right ones of one of them, or an error: never the KV of one under the other's answer.
        wants = [expected_tokens(request.prompt_token_ids, 6) for request in requests]
        assert heard.error or heard.token_ids in wants
