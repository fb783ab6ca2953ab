"""The simulator's rules once more: step by step, lists and sums, exact numbers, nothing clever.

Without shared links, layers sent ahead, failures, changed roles and predictions.
"""

from collections.abc import Iterator
from fractions import Fraction
from math import ceil, inf

from core.member import Role
from planner.sim.spec import Cluster, Scheduling
from planner.sim.traffic import Traffic
from policy.step_times import PS_PER_S
from tests.planner.sim.reference_state import (
    Lane,
    Request,
    decode_time,
    lanes_of,
    mixed_time,
    picoseconds,
    prefill_time,
    remember,
    requests_of,
)

PLACEMENTS = ("round_robin", "shortest_queue")
"""That the reference knows."""


class Reference:
    """Plays a traffic through a cluster; afterwards `requests` and `lanes` tell."""

    def __init__(self, cluster: Cluster, traffic: Traffic) -> None:
        assert cluster.placement in PLACEMENTS
        self.cluster, self.traffic = cluster, traffic
        self.lanes = list(lanes_of(cluster))
        self.requests = list(requests_of(traffic))
        self.flying: list[tuple[int, Request]] = []
        """Transfers and the fixed times after them: when each ends."""
        self.num_picks = 0
        self.num_preemptions = 0
        self.now = -1

    def play(self) -> None:
        """To the end."""
        while moments := list(self._moments()):
            self.now = min(moments)
            asking = self._end_all()
            asking += [each for each in self.requests if each.arrival == self.now]
            for each in asking:
                self._decide(each)
            while sum(self._let_in(lane) + self._settle(lane) for lane in self.lanes):
                pass
            for lane in self.lanes:
                self._start(lane)

    def _moments(self) -> Iterator[int]:
        yield from (each.arrival for each in self.requests if each.arrival > self.now)
        yield from (moment for moment, _ in self.flying)
        for lane in self.lanes:
            yield from (moment for moment, _ in lane.reading)
            if lane.step_end is not None:
                yield lane.step_end

    def _end_all(self) -> list[Request]:
        asking = []
        for pipelined in (False, True):
            for lane in self.lanes:
                if not pipelined and lane.step_end == self.now:
                    self._end_step(lane)
                if pipelined == (lane.stages > 1):
                    asking += self._end_reading(lane)
        ended = [each for moment, each in self.flying if moment == self.now]
        self.flying = [(moment, each) for moment, each in self.flying if moment > self.now]
        for each in sorted(ended, key=lambda r: r.number):
            self._land(each)
        return asking

    def _end_step(self, lane: Lane) -> None:
        spent = self.now - lane.began
        lane.busy_prefill += spent if lane.with_prompts else 0
        lane.busy_decode += 0 if lane.with_prompts else spent
        lane.step_end, lane.num_steps = None, lane.num_steps + 1
        if lane.with_answers and (ended := [r for r in lane.running if r.emit(self.now)]):
            lane.running = [each for each in lane.running if each not in ended]
            lane.see()

    def _end_reading(self, lane: Lane) -> list[Request]:
        """Prompts that are read; the requests that go on."""
        asking = []
        for _, batch in [entry for entry in lane.reading if entry[0] == self.now]:
            for request in batch:
                remember(lane, request, self.traffic.block_tokens)
                if not request.emit(self.now):
                    asking.append(request)
                    continue
                lane.others_held -= request.held
                if request.decode_by:
                    request.decode_by.num_incoming -= 1
        lane.reading = [entry for entry in lane.reading if entry[0] > self.now]
        return asking

    def _decide(self, request: Request) -> None:
        if request.prefill_by:
            if not request.decode_by:
                request.decode_by = self._choose(request, Role.DECODE)
                request.decode_by.num_incoming += 1
            if request.prefill_by is request.decode_by:
                self._stay(request, request.decode_by)
            else:
                request.decode_by.waiting.append(request)
            return
        if not self._able(request):
            request.is_refused = True
            return
        request.prefill_by = self._choose(request, Role.PREFILL)
        if request.prefill_by.role is Role.MIXED:
            request.decode_by = request.prefill_by
        elif self.cluster.pairs_at_arrival:
            request.decode_by = self._choose(request, Role.DECODE)
        if request.decode_by:
            request.decode_by.num_incoming += 1
        request.prefill_by.queue.append(request)

    def _stay(self, request: Request, lane: Lane) -> None:
        more = 0
        if lane.kind.reserves_output:
            more = request.prompt + request.output - 1 - request.held
        if more > lane.room(self.now):  # read it again, once there is room for the answer, too
            lane.others_held -= request.held
            request.held = 0
            self._ask_again(request, lane)
            return
        lane.others_held += more
        request.reserved, request.held = request.held + more, 0
        lane.landed.append(request)

    def _ask_again(self, request: Request, lane: Lane) -> None:
        """Its prompt is the next to be read, unless another one is partly read."""
        request.prefill_by, request.computed = lane, 0
        lane.queue.insert(1 if lane.queue and lane.queue[0].computed else 0, request)
        self.num_preemptions += 1

    def _able(self, request: Request) -> list[Lane]:
        most = request.prompt + request.output - 1
        return [lane for lane in self.lanes if lane.capacity >= most]

    def _choose(self, request: Request, role: Role) -> Lane:
        able = self._able(request)
        lanes = [lane for lane in able if lane.role in (role, Role.MIXED)] or able
        if len(lanes) == 1:
            return lanes[0]
        if self.cluster.placement == "shortest_queue":
            loads = [each.queue_load if role is Role.PREFILL else each.load for each in lanes]
            lanes = [each for each, load in zip(lanes, loads, strict=True) if load == min(loads)]
        self.num_picks += 1
        return lanes[(self.num_picks - 1) % len(lanes)]

    def _let_in(self, lane: Lane) -> bool:
        """Those whose KV waits for room, in their order; whether there was one."""
        moved = False
        while lane.waiting:
            request = lane.waiting[0]
            tokens = request.context
            if lane.kind.reserves_output:
                tokens = request.prompt + request.output - 1
            if tokens > lane.room(self.now):
                break
            lane.waiting.pop(0)
            lane.others_held += tokens
            request.reserved = tokens
            self._send(request, lane)
            moved = True
        return moved

    def _send(self, request: Request, lane: Lane) -> None:
        source, network = request.prefill_by, self.cluster.network
        assert source is not None
        num_bytes = Fraction(source.kind.kv_bytes_per_token) * request.context
        source.moved += int(num_bytes)
        is_local = source.host == lane.host
        rate = network.local_bytes_per_s if is_local else network.host_bytes_per_s
        span = 0 if rate == inf else ceil(num_bytes * PS_PER_S / Fraction(rate))
        span += picoseconds(Fraction(network.handoff_s)) if network.handoff_s else 0
        if span:
            self.flying.append((self.now + span, request))
        else:
            self._land(request)

    def _land(self, request: Request) -> None:
        assert request.prefill_by is not None
        assert request.decode_by is not None
        request.handoff = self.now
        request.prefill_by.others_held -= request.held
        request.held = 0
        request.decode_by.landed.append(request)

    def _start(self, lane: Lane) -> None:
        if lane.step_end is not None:
            return
        has_waited = bool(lane.running) and lane.pauses >= lane.kind.max_pauses
        is_joined = lane.kind.scheduling is Scheduling.JOINED
        if lane.queue and (is_joined or not has_waited):
            begin = self._chunks if lane.kind.scheduling is Scheduling.CHUNKED else self._prompts
            if begin(lane, has_waited):
                return
        if lane.running:
            lane.pauses = 0
            batch = len(lane.running)
            span = decode_time(lane.kind.times, batch, lane.context + batch)
            self._begin(lane, self.now + span, with_answers=True, with_prompts=False)

    def _begin(self, lane: Lane, end: int, *, with_answers: bool, with_prompts: bool) -> None:
        lane.began, lane.step_end = self.now, end
        lane.with_answers, lane.with_prompts = with_answers, with_prompts

    def _settle(self, lane: Lane) -> bool:
        """Who joins the next step and who is put off; whether anybody was."""
        if lane.step_end is not None:
            return False
        self._join(lane)
        was_full = False
        while self._is_full(lane):
            while lane.running and lane.grown_memory > lane.capacity:
                self._put_off(lane)
            # Whoever has landed comes before those whose KV still waits for room.
            self._join(lane)
            was_full = True
        return was_full

    def _is_full(self, lane: Lane) -> bool:
        """Not everybody in the batch can grow by a token."""
        grows = bool(lane.running) and not lane.kind.reserves_output
        return grows and lane.grown_memory > lane.capacity

    def _join(self, lane: Lane) -> None:
        while lane.landed and len(lane.running) < lane.kind.max_batch:
            request = lane.landed.pop(0)
            lane.others_held -= request.reserved
            request.reserved = 0
            lane.running.append(request)
            lane.num_incoming -= 1
            lane.see()

    def _put_off(self, lane: Lane) -> None:
        request = max(lane.running, key=lambda r: r.number)
        lane.running.remove(request)
        self._ask_again(request, lane)
        lane.num_incoming += 1
        lane.see()

    def _prompts(self, lane: Lane, has_waited: bool) -> bool:
        batch: list[Request] = []
        tokens = pairs = 0
        while lane.queue and len(batch) < lane.kind.max_prompts:
            request = lane.queue[0]
            hits, size = self._hits(lane, request), request.prompt + request.emitted
            if batch and tokens + size - hits > lane.kind.step_tokens:
                break
            if not self._admit(lane, request, batch):
                break
            batch.append(lane.queue.pop(0))
            request.hits = hits
            tokens += size - hits
            pairs += sum(range(hits + 1, size + 1))
        if not batch:
            return False
        answers = len(lane.running)
        joins = lane.kind.scheduling is Scheduling.JOINED and answers > 0 and lane.stages == 1
        joins = joins and (has_waited or tokens + answers <= lane.kind.step_tokens)
        if answers:
            lane.pauses = 0 if joins else lane.pauses + 1
        self._read(lane, batch, (tokens, pairs), joins)
        return True

    def _chunks(self, lane: Lane, _has_waited: bool) -> bool:
        left = lane.kind.step_tokens - len(lane.running)
        batch: list[Request] = []
        tokens = pairs = num = 0
        while lane.queue and left > 0 and num < lane.kind.max_prompts:
            request = lane.queue[0]
            if request.computed == 0:
                if not self._admit(lane, request, batch):
                    break
                request.computed = request.hits = self._hits(lane, request)
            begin = request.computed
            request.computed = min(request.prompt + request.emitted, begin + left)
            pairs += sum(range(begin + 1, request.computed + 1))
            tokens += request.computed - begin
            left -= request.computed - begin
            num += 1
            if request.computed == request.prompt + request.emitted:
                batch.append(lane.queue.pop(0))
        if tokens:
            joins = bool(lane.running) and lane.stages == 1
            lane.pauses += bool(lane.running) and not joins
            self._read(lane, batch, (tokens, pairs), joins)
        return tokens > 0

    def _admit(self, lane: Lane, request: Request, batch: list[Request]) -> bool:
        """Memory, and a place in the batch, for a prompt that is to be read."""
        writes = request.decode_by is lane
        memory = request.prompt + request.emitted
        if writes and lane.kind.reserves_output:
            memory = request.prompt + request.output - 1
        coming = lane.landed + [each for each in batch if each.decode_by is lane]
        if writes and len(lane.running) + len(coming) >= lane.kind.max_batch:
            return False
        if memory > lane.room(self.now):
            return False
        lane.others_held += memory
        request.held = memory
        request.start = self.now if request.start < 0 else request.start
        return True

    def _hits(self, lane: Lane, request: Request) -> int:
        leading = 0
        while leading < len(request.blocks) and request.blocks[leading] in lane.cache:
            leading += 1
        hits = max(request.cached, min(leading * self.traffic.block_tokens, request.prompt))
        return min(hits, request.prompt + request.emitted - 1)

    def _read(
        self, lane: Lane, batch: list[Request], size: tuple[int, int], with_answers: bool
    ) -> None:
        times, answers = lane.kind.times, len(lane.running)
        all_stages, first = prefill_time(times, *size)
        seconds = all_stages + first
        if with_answers:
            seconds = mixed_time(times, *size, answers, lane.context + answers)
        free = end = self.now + picoseconds(seconds)
        if lane.stages > 1:
            end = self.now
            for stage in range(lane.stages):
                span = all_stages / lane.stages + (0 if stage else first)
                end = max(end, lane.stage_free[stage]) + picoseconds(span)
                lane.stage_free[stage] = end
            free = lane.stage_free[0]
        lane.reading.append((end, batch))
        self._begin(lane, free, with_answers=with_answers, with_prompts=True)
