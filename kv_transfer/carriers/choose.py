"""Which carrier a pair uses: the sink offers, the source picks, inline always works."""

import logging
from collections import deque
from collections.abc import Sequence

from kv_transfer.carriers.contract import Carrier, CarrierUnusable, Inlet, Outlet
from kv_transfer.carriers.inline import INLINE, InlineInlet, InlineOutlet
from rpc.pb import kv_transfer_pb2 as pb

logger = logging.getLogger(__name__)

AUTO = "auto"
MAX_NOTED = 256
"""Fallbacks that are remembered as logged. Older ones may be logged again: peers and their
reasons are without end."""
MAX_CHARS = 256
"""Logged of what a peer said."""


class Carriers:
    """The carriers of one instance; owned by its event loop."""

    def __init__(self, carriers: Sequence[Carrier], wanted: str = AUTO) -> None:
        """`carriers`, the best first; `wanted` names the only one to receive by, or is "auto":
        then the best that needs both ends at one place, where that is known to be faster."""
        self._carriers = {carrier.name: carrier for carrier in carriers}
        self._wanted = wanted
        self._noted: deque[tuple[str, str, str]] = deque(maxlen=MAX_NOTED)
        """(peer, carrier, reason) of the last fallbacks that were logged: once is enough, each
        request is too often."""

    def offers(self) -> list[pb.CarrierOffer]:
        """What to offer to a source, the best first."""
        offers = [
            carrier.offer()
            for name, carrier in self._carriers.items()
            if self._wanted in (name, AUTO)
        ]
        return [
            offer
            for offer in offers
            # Between hosts nothing is known to beat inline bytes unless somebody asks for it.
            if offer is not None and (offer.place or self._wanted != AUTO)
        ]

    def outlet(self, offers: Sequence[pb.CarrierOffer], peer: str) -> Outlet:
        """The source's end, by the first offer that can be met."""
        for offer in offers:
            try:
                return self._find(offer.carrier).outlet(offer, peer)
            except CarrierUnusable as error:
                self.note_fallback(peer, offer.carrier, str(error))
        return InlineOutlet()

    def inlet(self, name: str, source_address: str) -> Inlet:
        """The sink's end of what the source announced, to which our Fetch call goes at
        `source_address`. Raises CarrierUnusable."""
        return InlineInlet() if name == INLINE else self._find(name).inlet(source_address)

    def note_fallback(self, peer: str, carrier: str, reason: str) -> None:
        """Log why payloads to or from `peer` go inline, once for each peer and reason."""
        noted = (peer, carrier[:MAX_CHARS], reason[:MAX_CHARS])
        if noted not in self._noted:
            self._noted.append(noted)
            logger.warning("carrier fallback peer=%s carrier=%s why=%s", *noted)

    def close(self) -> None:
        """All streams have ended."""
        for carrier in self._carriers.values():
            carrier.close()

    def _find(self, name: str) -> Carrier:
        if (carrier := self._carriers.get(name)) is None:
            raise CarrierUnusable(f"this instance has no carrier {name[:32]!r}")
        return carrier
