"""What both ends of an instance's handoffs work with."""

from concurrent.futures import Executor
from dataclasses import dataclass, field

from core.clock import Clock
from core.config import HandoffConfig
from core.failpoints import Failpoints
from core.ids import Fingerprint
from core.kv_layout import KvLayout
from kv_transfer.carriers.choose import Carriers
from kv_transfer.moving import MovingCosts
from kv_transfer.stores import KvStore


@dataclass(frozen=True, slots=True, kw_only=True)
class KvHost:
    """One instance, as far as moving KV needs to know it."""

    instance_id: str
    fingerprint: Fingerprint
    layout: KvLayout
    store: KvStore
    copies: Executor = field(repr=False)
    """Threads for gathers and scatters; the event loop must stay free."""
    carriers: Carriers
    clock: Clock
    config: HandoffConfig
    moving: MovingCosts = field(default_factory=MovingCosts)
    """Of the segments that leave here; their senders measure into it."""
    failpoints: Failpoints = field(default_factory=Failpoints)
    """Of a test."""
