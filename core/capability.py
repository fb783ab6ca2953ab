"""Leave to fetch KV: who may read what from whom, for how long, said by a holder of the key."""

import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from core.errors import BatonError
from core.ids import HandoffId
from core.prefix import KEY_BYTES
from core.request import Fence
from core.work import Peer

SLACK_S = 90.0
"""Past the deadline of the request: a lease time of 30 s, and a minute by which two processes may
disagree about the registry's time."""

_VERSION = 1
_HEAD = struct.Struct(">BQ")
"""Version; expiry in milliseconds of the registry's time."""
_MAC_BYTES = 32
TOKEN_BYTES = _HEAD.size + _MAC_BYTES
_MAX_EXPIRY_MS = 2**64 - 1
_LABEL = b"baton kv capability 1"


class CapabilityRefused(BatonError):
    """What was shown is no leave for this: damaged, forged, of another key, or for another."""

    status = "PERMISSION_DENIED"


class CapabilityExpired(CapabilityRefused):
    """It was leave for this, and is no longer."""


class Purpose(StrEnum):
    """What may be fetched."""

    HANDOFF = "handoff"
    """The KV of one attempt of a request."""
    PREFIX = "prefix"
    """What the source caches of one request's prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a capability is leave for; every field is under its MAC."""

    purpose: Purpose
    handoff_id: HandoffId
    fence: Fence
    """Exactly: another attempt needs leave of its own."""
    source_id: str
    source_address: str
    """host:port, as registered: leave for one address is none to dial another."""
    fetcher_id: str


def subkey(shared_key: bytes) -> bytes:
    """The key of capabilities, of the cluster's: the names of KV blocks have another."""
    if len(shared_key) != KEY_BYTES:
        raise ValueError(f"a key of {KEY_BYTES} bytes is needed, got {len(shared_key)}")
    return hmac.digest(shared_key, _LABEL, "sha256")


def sign(key: bytes, grant: Grant, expires_at_s: float) -> bytes:
    """A capability of TOKEN_BYTES bytes, good until `expires_at_s` on the registry's clock."""
    head = _HEAD.pack(_VERSION, min(max(0, round(expires_at_s * 1000)), _MAX_EXPIRY_MS))
    return head + _mac(key, head, grant)


def check(key: bytes, token: bytes, grant: Grant, now_s: float) -> None:
    """Raise CapabilityRefused unless `token` is leave for `grant` at `now_s`, registry's time."""
    if len(token) != TOKEN_BYTES:
        raise CapabilityRefused(f"a capability has {TOKEN_BYTES} bytes, got {len(token)}")
    version, expires_at_ms = _HEAD.unpack_from(token)
    # First: of what nobody signed not even the expiry is worth an answer.
    if not hmac.compare_digest(token[_HEAD.size :], _mac(key, token[: _HEAD.size], grant)):
        raise CapabilityRefused(f"not a capability for this {grant.purpose}")
    if version != _VERSION:
        raise CapabilityRefused(f"capability version {version}, here {_VERSION}")
    if now_s * 1000 >= expires_at_ms:
        raise CapabilityExpired(f"the capability ended {now_s - expires_at_ms / 1000:.0f} s ago")


def _mac(key: bytes, head: bytes, grant: Grant) -> bytes:
    texts = (
        grant.purpose.value,
        grant.handoff_id,
        grant.source_id,
        grant.source_address,
        grant.fetcher_id,
    )
    parts = [head, struct.pack(">qq", grant.fence.epoch, grant.fence.attempt)]
    for text in texts:
        # With its length before it: no two grants run together into the same bytes.
        data = text.encode()
        parts += (struct.pack(">I", len(data)), data)
    return hmac.digest(key, b"".join(parts), "sha256")


class Capabilities:
    """One process's dealings with capabilities; its owner may change the key while it runs."""

    def __init__(
        self, shared_key: bytes, now_s: Callable[[], float], *, own: Peer | None = None
    ) -> None:
        """`now_s` is the registry's time; `own` an instance's id and address, None: a router's."""
        self._keys: tuple[bytes, ...] = (subkey(shared_key),)
        self._now_s = now_s
        self._own = own

    @classmethod
    def of_nobody(cls, shared_key: bytes, *, own: Peer) -> Self:
        """Of an instance without a registry: time stands still, so nothing expires."""
        return cls(shared_key, lambda: 0.0, own=own)

    def change_key(self, shared_key: bytes) -> None:
        """Sign with this one from now on; what the last one signed is good still."""
        key = subkey(shared_key)
        if key != self._keys[0]:
            self._keys = (key, self._keys[0])

    def sign_for(self, grant: Grant, lifetime_s: float) -> bytes:
        """Leave for a request that must have ended in `lifetime_s` seconds."""
        return sign(self._keys[0], grant, self._now_s() + lifetime_s + SLACK_S)

    def check_fetch(
        self,
        token: bytes,
        *,
        purpose: Purpose,
        handoff_id: HandoffId,
        fence: Fence,
        fetcher_id: str,
    ) -> None:
        """At the source: whether the fetching side may. Raises CapabilityRefused."""
        own = self._self()
        grant = Grant(
            purpose=purpose,
            handoff_id=handoff_id,
            fence=fence,
            source_id=own.instance_id,
            source_address=own.address,
            fetcher_id=fetcher_id,
        )
        self._check(token, grant)

    def check_peer(
        self, peer: Peer, *, purpose: Purpose, handoff_id: HandoffId, fence: Fence
    ) -> None:
        """At the fetching side, before it dials: whether a router took this address from the
        registry, for us and for this. Raises CapabilityRefused."""
        grant = Grant(
            purpose=purpose,
            handoff_id=handoff_id,
            fence=fence,
            source_id=peer.instance_id,
            source_address=peer.address,
            fetcher_id=self._self().instance_id,
        )
        self._check(peer.capability, grant)

    def _self(self) -> Peer:
        assert self._own is not None, "only an instance is shown capabilities"
        return self._own

    def _check(self, token: bytes, grant: Grant) -> None:
        *earlier, newest = reversed(self._keys)
        for key in earlier:
            try:
                return check(key, token, grant, self._now_s())
            except CapabilityRefused:
                continue  # the newest key says why
        return check(newest, token, grant, self._now_s())
