"""What all choices of a router share."""

from dataclasses import dataclass

from core.capability import Capabilities
from core.clock import Clock
from core.ids import RouterId
from router.kv_index import PromptNames
from router.membership import Membership
from router.placer import Placer


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Given to every choice."""

    router_id: RouterId
    membership: Membership
    placer: Placer
    clock: Clock
    capabilities: Capabilities
    """Signs who may fetch from whom."""
    prompts: PromptNames
    """Tells who caches how much of a prompt."""
    max_attempts: int
