"""What the reference simulator keeps of requests and executors, and how long steps take."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

from core.member import Role
from planner.sim.spec import Cluster, Kind
from planner.sim.traffic import Traffic
from policy.step_times import PS_PER_S, StepTimes


@dataclass(eq=False)
class Request:
    """One request and what has become of it; moments in picoseconds, -1: never."""

    number: int
    arrival: int
    prompt: int
    output: int
    cached: int
    blocks: list[int]
    emitted: int = 0
    computed: int = 0
    prefill_by: "Lane | None" = None
    decode_by: "Lane | None" = None
    held: int = 0
    """Tokens at `prefill_by`."""
    reserved: int = 0
    """Tokens at `decode_by`, until the answer is in the batch."""
    is_refused: bool = False
    start: int = -1
    first: int = -1
    second: int = -1
    last: int = -1
    handoff: int = -1
    hits: int = 0

    @property
    def context(self) -> int:
        """Tokens that its answer keeps while it is written."""
        return self.prompt + self.emitted - 1

    def emit(self, now: int) -> bool:
        """One more token; whether it was the last."""
        self.emitted += 1
        self.first = now if self.emitted == 1 else self.first
        self.second = now if self.emitted == 2 else self.second
        self.last = now if self.emitted == self.output else self.last
        return self.emitted == self.output


@dataclass(eq=False)
class Lane:
    """One executor."""

    instance: int
    kind: Kind
    role: Role
    host: int
    stages: int
    capacity: int
    queue: list[Request] = field(default_factory=list)
    reading: list[tuple[int, list[Request]]] = field(default_factory=list)
    """Batches of prompts and when each is read."""
    waiting: list[Request] = field(default_factory=list)
    landed: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    stage_free: list[int] = field(default_factory=list)
    began: int = -1
    step_end: int | None = None
    with_answers: bool = False
    with_prompts: bool = False
    pauses: int = 0
    num_incoming: int = 0
    seen_running: int = 0
    seen_context: int = 0
    cache: list[int] = field(default_factory=list)
    """Blocks, the one used last at the end."""
    busy_prefill: int = 0
    busy_decode: int = 0
    moved: int = 0
    num_steps: int = 0
    others_held: int = 0
    """Tokens of all but running answers."""

    @property
    def context(self) -> int:
        """Tokens of running answers."""
        return sum(each.context for each in self.running)

    @property
    def grown_memory(self) -> int:
        """Tokens taken once every running answer has grown by one; promised ones, if promised."""
        if self.kind.reserves_output:
            return self.others_held + sum(r.prompt + r.output - 1 for r in self.running)
        return self.others_held + self.context + len(self.running)

    def room(self, now: int) -> int:
        """Tokens for others while answers grow, once the step that runs has ended."""
        tokens = self.capacity - self.grown_memory
        runs = self.step_end is not None and self.with_answers and self.began < now
        if runs and not self.kind.reserves_output:
            tokens -= len(self.running)
        return tokens

    def see(self) -> None:
        """Routers are told of a change of the batch."""
        self.seen_running, self.seen_context = len(self.running), self.context

    @property
    def load(self) -> tuple[int, Fraction]:
        """By which `shortest_queue` chooses who writes an answer."""
        used = self.others_held + self.seen_context
        if self.kind.reserves_output:
            used = self.others_held + sum(r.prompt + r.output - 1 for r in self.running)
        return self.seen_running + self.num_incoming, Fraction(used, self.capacity)

    @property
    def queue_load(self) -> tuple[int, Fraction]:
        """By which `shortest_queue` chooses who reads a prompt."""
        return len(self.queue) + sum(len(batch) for _, batch in self.reading), Fraction(0)


def prefill_time(times: StepTimes, tokens: int, pairs: int) -> tuple[Fraction, Fraction]:
    """Seconds of all stages together, and what the first one takes beside."""
    knots, seconds = times.prefill_tokens, times.prefill_s
    last = max([0, *(i for i in range(len(knots) - 1) if knots[i] <= tokens)])
    (x0, x1), (y0, y1) = ((Fraction(a[last]), Fraction(a[last + 1])) for a in (knots, seconds))
    curve = y0 + (y1 - y0) / (x1 - x0) * (tokens - x0) + Fraction(times.per_pair_s) * pairs
    first = Fraction(times.first_s) + Fraction(times.first_per_token_s) * tokens
    return curve + times.num_stages * Fraction(times.stage_s), first


def decode_time(times: StepTimes, batch: int, context: int) -> int:
    """Picoseconds."""
    starts = [int(start) for start in times.decode_starts[batch]]
    j = max(i for i, start in enumerate(starts) if start <= context)
    return int(times.decode_base_ps[batch, j]) + int(times.decode_slope_ps[batch, j]) * context


def mixed_time(times: StepTimes, tokens: int, pairs: int, batch: int, context: int) -> Fraction:
    """Seconds."""
    if times.mixed_factor:
        return Fraction(times.mixed_factor) * sum(prefill_time(times, tokens + batch, pairs))
    answers = Fraction(decode_time(times, batch, context), PS_PER_S)
    prompts = Fraction(sum(prefill_time(times, tokens, pairs)))
    return answers + prompts - min(Fraction(times.shared_s), answers, prompts)


def picoseconds(seconds: Fraction) -> int:
    """At least one."""
    return max(1, round(seconds * PS_PER_S))


def remember(lane: Lane, request: Request, block_tokens: int) -> None:
    """The last block of the prompt first, so that its beginning is kept longest."""
    for block in reversed(request.blocks):
        if block in lane.cache:
            lane.cache.remove(block)
        lane.cache.append(block)
    while len(lane.cache) > lane.kind.cache_tokens // block_tokens:
        lane.cache.pop(0)


def lanes_of(cluster: Cluster) -> Iterator[Lane]:
    """In order."""
    for number, each in enumerate(cluster.instances):
        kind = cluster.kinds[each.kind]
        num = 1 if each.role is Role.PREFILL else kind.times.num_stages
        stages = kind.times.num_stages if each.role is Role.PREFILL else 1
        for _ in range(num):
            yield Lane(
                instance=number,
                kind=kind,
                role=each.role,
                host=each.host,
                stages=stages,
                capacity=kind.capacity_tokens // num,
                stage_free=[0] * stages,
            )


def requests_of(traffic: Traffic) -> Iterator[Request]:
    """In order of arrival."""
    for r, arrival in enumerate(traffic.arrival_ps):
        begin, end = traffic.first_block[r], traffic.first_block[r + 1]
        yield Request(
            number=r,
            arrival=int(arrival),
            prompt=int(traffic.num_prompt_tokens[r]),
            output=int(traffic.num_output_tokens[r]),
            cached=int(traffic.num_cached_tokens[r]),
            blocks=[int(block) for block in traffic.blocks[begin:end]],
        )
