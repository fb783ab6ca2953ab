"""How long one placement takes in a router that knows a thousand instances."""

from collections.abc import Iterator
from random import Random
from time import perf_counter

from bench.report import Bar, Figure, figure
from bench.router_spec import (
    MAX_PLACEMENT_S,
    NUM_PLACED_INSTANCES,
    PLACEMENT_PROMPT_TOKENS,
    SEED,
)
from core.clock import MonotonicClock
from core.config import POLICIES, RouterConfig
from core.ids import Fingerprint, InstanceId
from core.load import Load
from core.member import Member, Role
from core.prefix import KEY_BYTES, PrefixHasher
from policy.table import Phase
from router.outliers import Outliers
from router.placer import Placer, Wanted
from router.prefix_index import PromptNames
from router.spec import Speed
from router.view import Sight, View

KEY = bytes(KEY_BYTES)
BLOCK_SIZE = 16
NUM_PLACEMENTS = 400


class _Seen:
    """In place of membership: every instance is up, and nobody is called."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._sights: dict[InstanceId, _Link] = {}

    def add(self, member: Member) -> Sight:
        sight = self.view.join(member)
        self._sights[member.instance_id] = _Link(sight)
        return sight

    def get(self, instance_id: InstanceId) -> "_Link | None":
        return self._sights.get(instance_id)


class _Link:
    def __init__(self, sight: Sight) -> None:
        self.sight = sight


def measure_placement() -> tuple[list[Figure], list[Bar]]:
    """Every policy on the same fleet; the bar is the default's median."""
    figures = []
    for policy in POLICIES:
        seconds = list(_place_many(policy))
        figures.append(figure(f"place on 1,000 instances: {policy}", seconds, "s"))
    name = "placement over 1,000 instances, slo, median"
    value = figures[POLICIES.index("slo")].median
    return figures, [Bar(name=name, value=value, bound=MAX_PLACEMENT_S, unit="s")]


def _place_many(policy: str) -> Iterator[float]:
    seen, rng = _Seen(View(Speed().model(), MonotonicClock())), Random(SEED)
    prompt = tuple(rng.randrange(1, 500) for _ in range(PLACEMENT_PROMPT_TOKENS))
    names = PrefixHasher(KEY, BLOCK_SIZE).extend("", [], prompt)
    short = [int.from_bytes(name[:8], "little") for name in names]
    for i in range(NUM_PLACED_INSTANCES):
        sight = seen.add(_member(i))
        sight.turn(alive=True)
        sight.report(_load(rng), 0)
        if i % 10 == 0:
            cached = short[: rng.randrange(len(short) + 1)]
            sight.cached(is_snapshot=True, stored=cached, removed=())
    config = RouterConfig(policy=policy)
    outliers = Outliers(seen.view.fleet, MonotonicClock())
    placer = Placer(seen, outliers, PromptNames(KEY), config, SEED)  # type: ignore[arg-type]
    wanted = Wanted(
        phases=frozenset(Phase),
        model="stub",
        num_tokens=2 * PLACEMENT_PROMPT_TOKENS,
        input_token_ids=prompt,
        tenant="",
        fingerprint=None,
        avoid=frozenset(),
        source_id=None,
    )
    for _ in range(NUM_PLACEMENTS):
        began_s = perf_counter()
        placer.place(wanted)
        yield perf_counter() - began_s


def _load(rng: Random) -> Load:
    num_decoding = rng.randrange(60)
    return Load(
        num_prefilling=rng.randrange(4),
        num_pending_prompt_tokens=rng.randrange(5000),
        num_decoding=num_decoding,
        num_context_tokens=300 * num_decoding,
        num_free_blocks=rng.randrange(4000),
        num_blocks=4096,
    )


def _member(index: int) -> Member:
    return Member(
        instance_id=InstanceId(f"i{index}"),
        role=Role.PREFILL if index % 2 else Role.DECODE,
        addresses=("127.0.0.1:1",),
        fingerprint=Fingerprint("stub"),
        model="stub",
        incarnation="1",
        host_id=f"host{index // 8}",
        protocol_version=1,
        block_size=BLOCK_SIZE,
        max_context_tokens=32_768,
        num_blocks=4096,
    )
