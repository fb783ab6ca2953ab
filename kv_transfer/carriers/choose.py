"""Which carrier a pair uses: the sink offers, the source picks, inline always works."""

import logging
from collections.abc import Sequence

from kv_transfer.carriers.contract import Carrier, CarrierUnusable, Inlet, Outlet
from kv_transfer.carriers.inline import INLINE, InlineInlet, InlineOutlet
from rpc.pb import kv_transfer_pb2 as pb

logger = logging.getLogger(__name__)

AUTO = "auto"


class Carriers:
    """The carriers of one instance; owned by its event loop."""

    def __init__(self, carriers: Sequence[Carrier], wanted: str = AUTO) -> None:
        """`carriers`, the best first; `wanted` names the only one to receive by, or is "auto":
        then the best that needs both ends at one place, where that is known to be faster."""
        self._carriers = {carrier.name: carrier for carrier in carriers}
        self._wanted = wanted
        self._fallbacks: set[tuple[str, str]] = set()
        """(peer, carrier) whose fallback was logged: once is enough, each request is too often."""

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

    def inlet(self, name: str) -> Inlet:
        """The sink's end of what the source announced. Raises CarrierUnusable."""
        return InlineInlet() if name == INLINE else self._find(name).inlet()

    def note_fallback(self, peer: str, carrier: str, reason: str) -> None:
        """Log why payloads to or from `peer` go inline, once for each peer."""
        if (peer, carrier) not in self._fallbacks:
            self._fallbacks.add((peer, carrier))
            logger.warning("carrier fallback peer=%s carrier=%s why=%s", peer, carrier, reason)

    def close(self) -> None:
        """All streams have ended."""
        for carrier in self._carriers.values():
            carrier.close()

    def _find(self, name: str) -> Carrier:
        if (carrier := self._carriers.get(name)) is None:
            raise CarrierUnusable(f"this instance has no carrier {name[:32]!r}")
        return carrier
