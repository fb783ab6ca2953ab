"""What all choices of a router share."""

from dataclasses import dataclass

from core.capability import Capabilities
from core.clock import Clock
from core.ids import RouterId
from router.membership import Membership
from router.outliers import Outliers
from router.placer import Placer
from router.prefix_index import PromptNames
from router.quotas import Quotas
from router.recorder import Recorder
from router.retries import Retries
from router.suspects import Suspects


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Given to every choice."""

    router_id: RouterId
    membership: Membership
    placer: Placer
    quotas: Quotas
    recorder: Recorder
    clock: Clock
    capabilities: Capabilities
    """Signs who may fetch from whom."""
    prompts: PromptNames
    """Tells who caches how much of a prompt."""
    outliers: Outliers
    retries: Retries
    suspects: Suspects
    max_attempts: int
