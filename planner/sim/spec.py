"""What is simulated: instances, what joins them, and the rules they work by."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from core.config import POLICIES
from core.errors import ConfigError
from core.member import Role
from policy.step_times import StepTimes, max_batch

UNLIMITED = 2**40
"""Tokens, or bytes per second times a million: more than anything here comes to."""
MIXED_POOL = "mixed_pool"
"""Splitwise's cluster scheduler (section 4.4), by the rules of its published simulator."""
PLACEMENTS = (*POLICIES, MIXED_POOL)


class Scheduling(IntEnum):
    """What an instance does when it has both prompts to read and answers to write."""

    EXCLUSIVE = 0
    """Steps of prompts alone come first; answers stand still meanwhile."""
    JOINED = 1
    """Whole prompts and answers in one step (Splitwise's mixed machines)."""
    CHUNKED = 2
    """Answers first, and what is left of the step's tokens for parts of prompts."""
    SPLITWISE = 3
    """As the published splitwise-sim: whole prompts first, then as many answers as the step's
    tokens leave place for; the others stand still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Watts of a whole instance."""

    idle_w: float = 0.0
    prefill_w: float = 0.0
    """While a step with prompts runs."""
    decode_w: float = 0.0
    """While a step of answers alone runs."""
    provisioned_w: float = 0.0
    """What has to be installed for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What instances of one layout, model and hardware have in common."""

    name: str
    times: StepTimes
    num_gpus: int = 1
    capacity_tokens: int = UNLIMITED
    """Of KV, over all its GPUs."""
    max_batch: int = 256
    """Answers in one step, at most `policy.step_times.max_batch(times)`."""
    step_tokens: int = 2048
    """Prompt tokens per step (L_m); a longer prompt runs alone. CHUNKED: tokens of any step."""
    max_prompts: int = 512
    """In one step."""
    scheduling: Scheduling = Scheduling.EXCLUSIVE
    max_pauses: int = UNLIMITED
    """Steps in a row that answers stand still for prompts (JOINED); then they are in the step.
    SPLITWISE: once all that wait have waited for so many steps, whoever waited least goes first."""
    reserves_output: bool = False
    """Memory for the whole answer is taken when it begins, as if its length were known."""
    kv_bytes_per_token: float = 0.0
    num_layers: int = 1
    """That layer-wise transfer can send one by one."""
    cache_tokens: int = 0
    """Of prompts that are kept for later ones that begin alike, beside `capacity_tokens`."""
    price_usd_per_hour: float = 0.0
    """Of the whole instance."""
    power: Power = field(default_factory=Power)

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        known = max_batch(self.times)
        if not 1 <= self.max_batch <= known:
            yield f"kind {self.name}: max_batch must be 1 to {known}, got {self.max_batch}"
        for name in ("capacity_tokens", "step_tokens", "max_prompts", "num_layers", "max_pauses"):
            if getattr(self, name) < 1:
                yield f"kind {self.name}: {name} must be at least 1, got {getattr(self, name)}"
        is_able = self.reserves_output and self.times.num_stages == 1
        if self.scheduling is Scheduling.SPLITWISE and not is_able:
            yield f"kind {self.name}: SPLITWISE reserves_output, and is not pipelined"
        if self.kv_bytes_per_token < 0 or self.cache_tokens < 0:
            yield f"kind {self.name}: kv_bytes_per_token and cache_tokens must be at least 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One of the cluster."""

    kind: int
    """Place in `Cluster.kinds`."""
    role: Role
    host: int = 0
    """Equal numbers share a host and its links."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What KV moves over: each host has one way out, one way in and one within; bytes per second.

    Transfers that share a way share it fairly (max-min).
    """

    host_bytes_per_s: float = float("inf")
    """Of each host's network, per direction."""
    local_bytes_per_s: float = float("inf")
    """Between instances of one host."""
    handoff_s: float = 0.0
    """Of any handoff, however short."""
    retry_s: float = 0.0
    """A request that finds no room for its KV asks again so much later, and no other waits for it;
    0: those that wait get room as there is some, first come first served."""
    is_shared: bool = True
    """False: every transfer has the whole bandwidth to itself."""
    layerwise_from_tokens: int = UNLIMITED
    """From so many prompt tokens on, layers are sent while later ones are computed (Splitwise,
    section 4.3: 512 on an H100)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that happens to an instance, by itself or by a controller."""

    at_s: float
    instance: int
    role: Role | None = None
    """None: it is lost with all it holds. Else it takes work of this role from now on."""
    back_s: float = float("inf")
    """When a lost one is there again, empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """All of it."""

    kinds: tuple[Kind, ...]
    instances: tuple[Instance, ...]
    network: Network = field(default_factory=Network)
    placement: str = "shortest_queue"
    """One of PLACEMENTS."""
    pairs_at_arrival: bool = False
    """Who writes the answer is chosen together with who reads the prompt; else once it is read."""
    changes: tuple[Change, ...] = ()
    max_ttft_s: float = float("inf")
    """Requests predicted to wait longer are refused (`policy.admission`)."""

    @property
    def num_gpus(self) -> int:
        """Of all instances."""
        return sum(self.kinds[each.kind].num_gpus for each in self.instances)

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        for kind in self.kinds:
            yield from kind.problems()
        if self.placement not in PLACEMENTS:
            yield f"placement must be of {', '.join(PLACEMENTS)}, got {self.placement!r}"
        if not self.instances:
            yield "a cluster needs at least one instance"
        if any(not 0 <= each.kind < len(self.kinds) for each in self.instances):
            yield f"an instance's kind must be 0 to {len(self.kinds) - 1}"
        roles = {each.role for each in self.instances}
        if Role.ROUTER in roles:
            yield "routers are not simulated"
        if Role.MIXED not in roles and not {Role.PREFILL, Role.DECODE} <= roles:
            yield "a cluster needs prefill and decode instances, or mixed ones"

    def checked(self) -> "Cluster":
        """Itself. Raises ConfigError with every problem."""
        if problems := tuple(self.problems()):
            raise ConfigError(problems)
        return self
