"""Everything that changes during a simulation, as arrays that machine code can work on."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.sim.heap import NONE, Events
from policy.latency import LatencyModel
from policy.step_times import StepTimes
from policy.table import Floats, Ints, Table

Records = NDArray[np.void]

FUTURE, QUEUED, PREFILLING, WAITING, MOVING, LANDING, LANDED, RUNNING, DONE, REFUSED = range(10)
"""Where a request is: not there yet; in the queue of its prefill instance; in a step; its KV waits
for room at its decode instance; moves there; has arrived but for the handoff's fixed time; is there
and joins the next step; in the batch; ended; never begun."""

QUEUE, FLIGHT, WAIT, LAND, NEW, PUT_OFF = range(6)
"""Each lane's lists: prompts to read, prompts being read, requests whose KV waits elsewhere for
room here, requests that join the next step, those that have joined and not yet been in one, answers
that are left out of the step which runs (SPLITWISE)."""
NUM_LISTS = 6

BODY, TAIL, WHOLE = 1, 2, 3
"""What of a request's KV moves: all layers but the last while they are computed, the last one, all
of them."""

WHOLE_ANSWERS, IN_TWO = 1, 2
"""When memory for an answer is taken: all of it at once, or all but prompt and first token only as
it joins a batch (SPLITWISE)."""

REQUEST = np.dtype(
    [
        ("arrival", "i8"),
        ("prompt", "i8"),
        ("output", "i8"),
        ("cached", "i8"),  # tokens that any instance is taken to hold
        ("state", "i8"),
        ("prefill_by", "i8"),  # lane
        ("decode_by", "i8"),
        ("emitted", "i8"),  # output tokens; of one in a batch as it was when it joined
        ("computed", "i8"),  # tokens of its input, by chunks
        ("passed", "i8"),  # steps that began without it (SPLITWISE)
        ("joined", "i8"),  # a number that rises from one that joins a batch to the next
        ("hits", "i8"),
        ("held", "i8"),  # tokens of memory at `prefill_by`
        ("reserved", "i8"),  # tokens of memory at `decode_by`
        ("batch_end", "i8"),
        ("next", "i8"),  # in the one list it is in
        ("start", "i8"),
        ("first", "i8"),
        ("second", "i8"),
        ("last", "i8"),
        ("handoff", "i8"),
        ("part", "i8"),  # BODY, TAIL, WHOLE; 0: nothing moves
        ("link_out", "i8"),
        ("link_in", "i8"),
        ("settled", "i8"),  # moment up to which `left` is true
        ("left", "f8"),  # bytes
        ("rate", "f8"),  # bytes per picosecond
        ("most", "f8"),  # bytes per picosecond that are produced; of BODY
    ]
)

LANE = np.dtype(
    [
        ("instance", "i8"),
        ("kind", "i8"),
        ("host", "i8"),
        ("stages", "i8"),  # of the pipeline that prompts pass one behind the other
        ("capacity", "i8"),  # tokens
        ("max_batch", "i8"),
        ("reserves", "i8"),  # WHOLE_ANSWERS, IN_TWO: in `held`; 0: the context of answers counts
        ("busy", "i8"),
        ("has_prompts", "i8"),  # the step that runs holds prompts
        ("steps", "i8"),  # that the leap which runs will do; 0: no answer advances
        ("began", "i8"),
        ("base", "i8"),
        ("slope", "i8"),
        ("num_running", "i8"),
        ("context", "i8"),  # tokens of running answers when the leap began
        ("steps_done", "i8"),  # before the leap; an answer ends at a number of it
        ("held", "i8"),  # tokens of memory that running answers do not take
        ("pauses", "i8"),
        ("calls", "i8"),  # somebody has come or gone since the batch was chosen
        ("ended", "i8"),  # a step has ended since the lane was last looked at
        ("dirty", "i8"),
        ("retry", "i8"),
        ("busy_prefill", "i8"),
        ("busy_decode", "i8"),
        ("moved", "f8"),  # bytes that left
        ("pool", "i8"),  # of MIXED_POOL: the role it has for now
        ("pool_since", "i8"),  # of MIXED_POOL: rises from one that enters a pool to the next
        ("pool_pending", "i8"),  # of MIXED_POOL: prompt tokens not yet read, and answers
        ("pool_memory", "i8"),  # of MIXED_POOL: tokens that all placed requests will come to
    ]
)

KIND = np.dtype(
    [
        ("step_tokens", "i8"),
        ("max_prompts", "i8"),
        ("scheduling", "i8"),
        ("max_pauses", "i8"),
        ("layers", "i8"),
        ("stages", "i8"),
        ("kv_bytes", "f8"),
        ("per_pair_s", "f8"),
        ("stage_s", "f8"),
        ("first_s", "f8"),
        ("first_per_token_s", "f8"),
        ("shared_s", "f8"),
        ("mixed_factor", "f8"),
    ]
)


class Kinds(NamedTuple):
    """All kinds' step times, stacked; rows are padded to the largest."""

    rules: Records
    prefill_tokens: Floats
    prefill_s: Floats
    decode_starts: Ints
    decode_base_ps: Ints
    decode_slope_ps: Ints


class Lists(NamedTuple):
    """Linked lists of requests; list n of lane i is number i · NUM_LISTS + n."""

    head: Ints
    tail: Ints
    num: Ints


class Links(NamedTuple):
    """Per host a way within, out and in: numbers 3h, 3h + 1, 3h + 2."""

    bytes_per_ps: Floats
    head: Ints
    """First transfer of each."""
    nexts: Ints
    """[request, 0: on its way out, 1: in]."""
    prevs: Ints
    num: Ints
    marks: Ints
    """By link: the last rebalancing that came by."""
    stack: Ints
    found: Ints
    """Requests of a rebalancing."""
    free: Floats
    open: Ints


class Caches(NamedTuple):
    """Per lane the prompt blocks it keeps, the longest unused one first to go."""

    neighbours: NDArray[np.int32]
    """[lane, block, 0: newer, 1: older]; ABSENT where it is not kept. The last block is the list's
    own end."""
    num: Ints
    capacity: Ints
    """Blocks."""


class Rules(NamedTuple):
    """What holds for the whole cluster."""

    policy: int
    """Place in `core.config.POLICIES`."""
    in_pools: bool
    """MIXED_POOL, whatever the policy."""
    pairs_at_arrival: bool
    asks_for_hits: bool
    """The policy looks at what each instance caches of a prompt."""
    handoff_ps: int
    retry_ps: int
    """0: whoever waits for room is told when there is some."""
    is_shared: bool
    layerwise_from: int
    max_ttft_s: float
    mixed_pending_tokens: int
    model: LatencyModel
    """Of what the placement policy predicts."""
    same_host_s_per_token: float
    other_host_s_per_token: float


class Limits(NamedTuple):
    """By class, for runs that end once too many have missed."""

    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    max_misses: int


class Sim(NamedTuple):
    """All of it."""

    requests: Records
    lanes: Records
    kinds: Kinds
    lists: Lists
    due: Events
    """Slots: lane i ends a step at i, a pipelined batch at num_lanes + i; request r's transfer
    ends at 2 · num_lanes + r."""
    members: Ints
    """[lane, place]: a heap of (steps_done at which an answer ends, request)."""
    stage_free: Ints
    """[lane, stage]."""
    table: Table
    policy_table: Table
    """The same columns, as policies want them."""
    links: Links
    caches: Caches
    classes: Ints
    first_block: Ints
    blocks: Ints
    block_tokens: int
    rules: Rules
    limits: Limits
    changes: Ints
    """[change]: moment, lane, role (NONE: lost), moment of return."""
    ready: Ints
    """Requests that somebody has to decide on now, each twice at most: its prompt is read, and its
    instance is lost; the last entry counts them."""
    dirty: Ints
    """Lanes that may start a step; the last entry counts them."""
    retry: Ints
    """Lanes that may have room for those who wait; the last entry counts them."""
    counters: Ints
    hits: Ints
    """By lane: scratch."""
    scores: Floats
    """By lane: scratch."""


(
    NUM_EVENTS,
    NUM_LEAPS,
    NUM_LEAPT,
    NUM_SINGLE,
    NUM_PREEMPTIONS,
    NUM_TRANSFERS,
    NUM_PICKS,
    DRAW,
    NUM_MISSES,
    NUM_MARKS,
    NOW,
    LEAPS_AT_MOST,
    NEXT_REQUEST,
    NEXT_CHANGE,
    ANY_SERVES,
    STAMP,
) = range(16)
"""Places in `counters`."""
NUM_COUNTERS = 16
ABSENT = -2
REQUEST_BITS = 24


def times_of(kinds: Kinds, kind: int) -> StepTimes:
    """One kind's own."""
    rules = kinds.rules[kind]
    return StepTimes(
        kinds.prefill_tokens[kind],
        kinds.prefill_s[kind],
        rules.per_pair_s,
        rules.stages,
        rules.stage_s,
        rules.first_s,
        rules.first_per_token_s,
        kinds.decode_starts[kind],
        kinds.decode_base_ps[kind],
        kinds.decode_slope_ps[kind],
        rules.shared_s,
        rules.mixed_factor,
    )


def push(sim: Sim, lane: int, which: int, request: int) -> None:
    """At the end of one of a lane's lists."""
    lists, number = sim.lists, lane * NUM_LISTS + which
    sim.requests[request].next = NONE
    if lists.num[number] == 0:
        lists.head[number] = request
    else:
        sim.requests[lists.tail[number]].next = request
    lists.tail[number] = request
    lists.num[number] += 1


def push_front(sim: Sim, lane: int, which: int, request: int) -> None:
    """At its beginning."""
    lists, number = sim.lists, lane * NUM_LISTS + which
    sim.requests[request].next = lists.head[number] if lists.num[number] else NONE
    if lists.num[number] == 0:
        lists.tail[number] = request
    lists.head[number] = request
    lists.num[number] += 1


def put_back(sim: Sim, lane: int, request: int) -> None:
    """First of those whose prompt is to be read, but behind one that is partly read: that one
    keeps its memory until it is through."""
    begun = length(sim, lane, QUEUE) > 0 and sim.requests[first(sim, lane, QUEUE)].computed > 0
    ahead = pop(sim, lane, QUEUE) if begun else NONE
    push_front(sim, lane, QUEUE, request)
    if begun:
        push_front(sim, lane, QUEUE, ahead)


def pop(sim: Sim, lane: int, which: int) -> int:
    """The first one."""
    lists, number = sim.lists, lane * NUM_LISTS + which
    request: int = lists.head[number]
    lists.head[number] = sim.requests[request].next
    lists.num[number] -= 1
    return request


def length(sim: Sim, lane: int, which: int) -> int:
    """Of one of a lane's lists."""
    num: int = sim.lists.num[lane * NUM_LISTS + which]
    return num


def remove(sim: Sim, lane: int, which: int, request: int) -> None:
    """Out of a list, where it is in it."""
    for _ in range(length(sim, lane, which)):
        other = pop(sim, lane, which)
        if other != request:
            push(sim, lane, which, other)


def first(sim: Sim, lane: int, which: int) -> int:
    """Of a list that is not empty."""
    request: int = sim.lists.head[lane * NUM_LISTS + which]
    return request


def mark(flagged: Ints, lanes: Records, lane: int, name: int) -> None:
    """Remember a lane; `name` 0: dirty, 1: retry."""
    record = lanes[lane]
    if name == 0:
        if record.dirty:
            return
        record.dirty = 1
    else:
        if record.retry:
            return
        record.retry = 1
    # Kept sorted: lanes are looked at in their order, however they came here.
    place = flagged[-1]
    flagged[-1] = place + 1
    while place > 0 and flagged[place - 1] < lane:
        flagged[place] = flagged[place - 1]
        place -= 1
    flagged[place] = lane


def ask_for(sim: Sim, request: int) -> None:
    """A request is to be placed, or whoever writes its answer is to be chosen."""
    num = sim.ready[-1]
    sim.ready[num] = request
    sim.ready[-1] = num + 1
