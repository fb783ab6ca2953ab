"""The router's leave to fetch, and who judges it."""

from dataclasses import dataclass

from core.ids import HandoffId
from core.request import Fence


@dataclass(frozen=True, slots=True)
class Leave:
    """What a capability is a MAC of: here nobody forges one, but everybody may present another."""

    handoff_id: HandoffId
    fence: Fence
    source: str
    fetcher: str
    is_prefix: bool = False


class Gate:
    """One source's judgement."""

    def admits(self, shown: Leave, wanted: Leave) -> bool:
        """Exactly what it was given for."""
        return shown == wanted
