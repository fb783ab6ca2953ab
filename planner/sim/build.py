"""From what is asked to arrays: instances become lanes, kinds become rows of tables."""

from collections.abc import Sequence

import numpy as np

from core.config import POLICIES
from core.errors import ConfigError
from core.member import Role
from core.slo import Slo
from planner.sim.changes import BACK, LOST
from planner.sim.heap import NONE, events
from planner.sim.links import links
from planner.sim.prefix import caches
from planner.sim.spec import MIXED_POOL, Cluster, Kind, Scheduling
from planner.sim.state import (
    DRAW,
    FUTURE,
    IN_TWO,
    KIND,
    LANE,
    LEAPS_AT_MOST,
    NUM_COUNTERS,
    NUM_LISTS,
    REQUEST,
    WHOLE_ANSWERS,
    Kinds,
    Limits,
    Lists,
    Records,
    Rules,
    Sim,
)
from planner.sim.traffic import Traffic
from policy.latency import LatencyModel
from policy.step_times import NEVER, PS_PER_S, decode_ps, prefill_s
from policy.table import ROLE_CODES, Floats, Ints, Table, empty_table

MIXED_PENDING_TOKENS = 8192
"""Of the published simulator's mixed pool: a prompt queue is long from here on."""
TYPICAL_TOKENS, TYPICAL_BATCH, TYPICAL_CONTEXT = 1024, 16, 16 * 512
"""Where kinds are compared with each other, for what the policy predicts of them."""

HIT_POLICIES = ("slo", "prefix_aware")
"""They look at what each instance caches; so does admission."""


def build(
    cluster: Cluster, traffic: Traffic, slos: Sequence[Slo], max_misses: int, max_leap: int
) -> Sim:
    """A simulation that has not begun."""
    lanes = _lanes(cluster)
    num_lanes, num = len(lanes), len(traffic.arrival_ps)
    counters = np.zeros(NUM_COUNTERS, dtype=np.int64)
    counters[LEAPS_AT_MOST], counters[DRAW] = max_leap, 1
    most = max(kind.max_batch for kind in cluster.kinds)
    num_hosts = max(each.host for each in cluster.instances) + 1
    network, table = cluster.network, _table(cluster, lanes)
    return Sim(
        requests=_requests(traffic),
        lanes=lanes,
        kinds=_kinds(cluster.kinds),
        lists=Lists(*(np.zeros(num_lanes * NUM_LISTS, dtype=np.int64) for _ in range(3))),
        due=events(2 * num_lanes + num),
        members=np.zeros((num_lanes, most + 1), dtype=np.int64),
        stage_free=np.zeros((num_lanes, int(lanes["stages"].max())), dtype=np.int64),
        table=table,
        policy_table=table,
        links=links(
            network.local_bytes_per_s / PS_PER_S,
            network.host_bytes_per_s / PS_PER_S,
            num_hosts,
            num,
        ),
        caches=caches(_cache_blocks(cluster, lanes, traffic), _num_blocks(traffic)),
        classes=traffic.request_class,
        first_block=traffic.first_block,
        blocks=traffic.blocks,
        block_tokens=traffic.block_tokens,
        rules=_rules(cluster),
        limits=_limits(slos, max_misses, int(traffic.request_class.max(initial=0)) + 1),
        changes=_changes(cluster, lanes),
        ready=np.zeros(2 * num + 1, dtype=np.int64),
        dirty=np.zeros(num_lanes + 1, dtype=np.int64),
        retry=np.zeros(num_lanes + 1, dtype=np.int64),
        counters=counters,
        hits=np.zeros(num_lanes, dtype=np.int64),
        scores=np.zeros(num_lanes),
    )


def num_lanes_of(cluster: Cluster, instance: int) -> int:
    """A pipelined instance that writes answers does so in as many lanes as it has stages."""
    each = cluster.instances[instance]
    stages = cluster.kinds[each.kind].times.num_stages
    return 1 if each.role is Role.PREFILL else stages


def _requests(traffic: Traffic) -> Records:
    records = np.zeros(len(traffic.arrival_ps), dtype=REQUEST)
    records["arrival"] = traffic.arrival_ps
    records["prompt"] = traffic.num_prompt_tokens
    records["output"] = traffic.num_output_tokens
    records["cached"] = traffic.num_cached_tokens
    records["state"] = FUTURE
    for name in (
        *("prefill_by", "decode_by", "next", "start", "first", "second", "last"),
        *("handoff", "link_out", "link_in"),
    ):
        records[name] = NONE
    return records


def _lanes(cluster: Cluster) -> Records:
    rows = []
    for number, each in enumerate(cluster.instances):
        kind = cluster.kinds[each.kind]
        num = num_lanes_of(cluster, number)
        row = np.zeros(1, dtype=LANE)
        row["instance"], row["kind"], row["host"] = number, each.kind, each.host
        row["stages"] = kind.times.num_stages if each.role is Role.PREFILL else 1
        row["capacity"], row["max_batch"] = kind.capacity_tokens // num, kind.max_batch
        row["reserves"], row["pool"] = _reserves(kind), ROLE_CODES[each.role]
        rows.extend([row] * num)
    return np.concatenate(rows)


def _reserves(kind: Kind) -> int:
    if not kind.reserves_output:
        return 0
    return IN_TWO if kind.scheduling is Scheduling.SPLITWISE else WHOLE_ANSWERS


def _kinds(kinds: Sequence[Kind]) -> Kinds:
    rules = np.zeros(len(kinds), dtype=KIND)
    for row, kind in zip(rules, kinds, strict=True):
        for name in ("step_tokens", "max_prompts", "scheduling", "max_pauses"):
            row[name] = getattr(kind, name)
        for name in ("per_pair_s", "stage_s", "first_s", "first_per_token_s"):
            row[name] = getattr(kind.times, name)
        row["shared_s"], row["mixed_factor"] = kind.times.shared_s, kind.times.mixed_factor
        row["stages"], row["layers"] = kind.times.num_stages, kind.num_layers
        row["kv_bytes"] = kind.kv_bytes_per_token
    all_times = [kind.times for kind in kinds]
    num_knots = max(len(times.prefill_tokens) for times in all_times)
    curves = [_longer(t.prefill_tokens, t.prefill_s, num_knots) for t in all_times]
    shape = np.max([times.decode_starts.shape for times in all_times], axis=0)
    return Kinds(
        rules=rules,
        prefill_tokens=np.stack([knots for knots, _ in curves]),
        prefill_s=np.stack([seconds for _, seconds in curves]),
        decode_starts=_padded([t.decode_starts for t in all_times], shape, NEVER),
        decode_base_ps=_padded([t.decode_base_ps for t in all_times], shape, 0),
        decode_slope_ps=_padded([t.decode_slope_ps for t in all_times], shape, 0),
    )


def _longer(knots: Floats, seconds: Floats, num: int) -> tuple[Floats, Floats]:
    """The same curve with more knots: further ones on its last slope."""
    slope = (seconds[-1] - seconds[-2]) / (knots[-1] - knots[-2])
    more = np.arange(1, num - len(knots) + 1)
    return (
        np.concatenate([knots, knots[-1] + more]).astype(np.float64),
        np.concatenate([seconds, seconds[-1] + slope * more]).astype(np.float64),
    )


def _padded(tables: Sequence[Ints], shape: Ints, fill: int) -> Ints:
    stacked = np.full((len(tables), *shape), fill, dtype=np.int64)
    for row, table in zip(stacked, tables, strict=True):
        row[: table.shape[0], : table.shape[1]] = table
    return stacked


def _table(cluster: Cluster, lanes: Records) -> Table:
    table = empty_table(len(lanes))
    first = cluster.kinds[0]
    for i, lane in enumerate(lanes):
        kind = cluster.kinds[lane["kind"]]
        table.role[i] = ROLE_CODES[cluster.instances[lane["instance"]].role]
        table.prefill_scale[i] = _prefill_s(kind) / _prefill_s(first)
        table.decode_scale[i] = _decode_ps(kind) / _decode_ps(first)
    table.host[:] = lanes["host"]
    table.alive[:] = True
    table.num_blocks[:] = table.num_free_blocks[:] = lanes["capacity"]
    table.block_size[:] = 1
    return table


def _prefill_s(kind: Kind) -> float:
    return prefill_s(kind.times, TYPICAL_TOKENS, TYPICAL_TOKENS**2 / 2)


def _decode_ps(kind: Kind) -> int:
    return decode_ps(kind.times, min(TYPICAL_BATCH, kind.max_batch), TYPICAL_CONTEXT)


def _rules(cluster: Cluster) -> Rules:
    network = cluster.network
    in_pools = cluster.placement == MIXED_POOL
    kv_bytes = cluster.kinds[0].kv_bytes_per_token
    return Rules(
        # Where a token machine is lost, another one is chosen by its queue.
        policy=POLICIES.index("jsq" if in_pools else cluster.placement),
        in_pools=in_pools,
        pairs_at_arrival=cluster.pairs_at_arrival or in_pools,
        asks_for_hits=cluster.placement in HIT_POLICIES or cluster.max_ttft_s < np.inf,
        handoff_ps=round(network.handoff_s * PS_PER_S),
        retry_ps=round(network.retry_s * PS_PER_S),
        is_shared=network.is_shared,
        layerwise_from=network.layerwise_from_tokens,
        max_ttft_s=cluster.max_ttft_s,
        mixed_pending_tokens=MIXED_PENDING_TOKENS,
        model=_predicting(cluster.kinds[0]),
        same_host_s_per_token=kv_bytes / network.local_bytes_per_s,
        other_host_s_per_token=kv_bytes / network.host_bytes_per_s,
    )


def _predicting(kind: Kind) -> LatencyModel:
    """What a router would have fitted: a line for prefill, a table over the batch for decode."""
    zero, typical = prefill_s(kind.times, 0, 0), prefill_s(kind.times, TYPICAL_TOKENS, 0)
    batches = np.unique(np.geomspace(1, kind.max_batch, 16).astype(np.int64))
    empty_s = [decode_ps(kind.times, b, 0) / PS_PER_S for b in batches]
    filled_ps = decode_ps(kind.times, 1, TYPICAL_CONTEXT) - decode_ps(kind.times, 1, 0)
    return LatencyModel(
        prefill=np.array([zero, (typical - zero) / TYPICAL_TOKENS, kind.times.per_pair_s]),
        batches=batches.astype(np.float64),
        batch_s=np.array(empty_s),
        contexts=np.array([0.0, TYPICAL_CONTEXT]),
        context_s=np.array([0.0, filled_ps / PS_PER_S]),
        reach=np.zeros((4, 2)),
    )


def _limits(slos: Sequence[Slo], max_misses: int, num_classes: int) -> Limits:
    rows = slos or (Slo(),) * num_classes
    if len(rows) < num_classes:
        raise ConfigError((f"{num_classes} classes of requests, limits for {len(rows)} of them",))
    return Limits(
        ttft_s=_limits_s([slo.ttft_s for slo in rows]),
        tpot_s=_limits_s([slo.tpot_s for slo in rows]),
        e2e_s=_limits_s([slo.e2e_s for slo in rows]),
        max_misses=max_misses,
    )


def _limits_s(limits_s: Sequence[float | None]) -> Floats:
    return np.array([np.inf if limit is None else limit for limit in limits_s])


def _changes(cluster: Cluster, lanes: Records) -> Ints:
    rows = []
    for each in cluster.changes:
        own = np.flatnonzero(lanes["instance"] == each.instance)
        kind = cluster.kinds[cluster.instances[each.instance].kind]
        if each.role is not None and kind.times.num_stages > 1:
            raise ConfigError((f"instance {each.instance} is pipelined: its role cannot change",))
        at_ps = round(each.at_s * PS_PER_S)
        for lane in own:
            what = LOST if each.role is None else ROLE_CODES[each.role]
            rows.append((at_ps, lane, what))
            if each.role is None and each.back_s < np.inf:
                rows.append((round(each.back_s * PS_PER_S), lane, BACK))
    rows.sort()
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _num_blocks(traffic: Traffic) -> int:
    return int(traffic.blocks.max()) + 1 if len(traffic.blocks) else 0


def _cache_blocks(cluster: Cluster, lanes: Records, traffic: Traffic) -> Ints:
    wanted = [cluster.kinds[kind].cache_tokens // traffic.block_tokens for kind in lanes["kind"]]
    if not len(traffic.blocks):
        return np.zeros(len(lanes), dtype=np.int64)
    return np.minimum(np.array(wanted, dtype=np.int64), _num_blocks(traffic))
