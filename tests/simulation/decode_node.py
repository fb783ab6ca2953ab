"""A decode instance: reserves blocks, fetches, commits, and decodes."""

from dataclasses import dataclass, field

from core.blocks import BlockState
from core.errors import StaleFence, WrongState
from core.handoff import SinkEvent, SinkState
from core.ids import HandoffId
from core.request import Fence
from kv_transfer.sink import Sink
from tests.simulation.batch import Batch
from tests.simulation.content import LAYOUT, Spec
from tests.simulation.coverage import SINK
from tests.simulation.leaves import Leave
from tests.simulation.loop import Waiting
from tests.simulation.network import Network, Node
from tests.simulation.prefill_node import PrefillNode
from tests.simulation.profile import LEASE, TICK_S
from tests.simulation.room import PartRoom, Room
from tests.simulation.sending import End
from tests.simulation.world import World


@dataclass(slots=True, eq=False)
class Job:
    """One handoff here, from the Decode call to its tombstone."""

    spec: Spec | None
    sink: Sink
    num_tokens: int = 0
    """Prompt and forced tokens: what its prefill must announce."""
    source: PrefillNode | None = None
    stream_id: int = 0
    writing: list[Fence] = field(default_factory=list)
    """Whose segments threads are writing."""
    is_admitted: bool = False
    """The scheduler has seen the announcement."""
    waiting: Waiting | None = None
    """For room."""
    end: End | None = None
    lost_at_s: float = 0.0
    progress_at_s: float = 0.0
    first_position: int = 0
    """Of the first token that came with the KV."""
    salt: int = 0
    block_ids: tuple[int, ...] = ()
    """Once decoding."""
    tokens: list[int] = field(default_factory=list)
    next_acked: int = 0
    """Output positions below this need no replay."""
    forget_at_s: float = 0.0
    """Once ended."""

    @property
    def is_growing(self) -> bool:
        """It runs, or is about to."""
        is_here = self.sink.state is SinkState.COMMITTED
        return is_here and bool(self.block_ids or self.sink.block_ids)

    def __str__(self) -> str:
        fence = self.sink.fence
        return f"{self.sink.handoff_id}@{fence.epoch}.{fence.attempt}:{self.sink.state.value}"


class DecodeNode(Node):
    """Walks Sink machines."""

    has_swapped = False
    is_short = False
    """See reservations.Running: nothing is swapped here."""

    def __init__(self, world: World, network: Network, name: str, num_blocks: int) -> None:
        self.jobs: dict[HandoffId, Job] = {}
        super().__init__(world, network, name, num_blocks)

    def boot(self) -> None:
        super().boot()
        self.jobs = {}
        self.fetching = self.world.parts.fetching(self)
        self.batch = Batch(self)
        self.room = (PartRoom if self.world.profile.gives_parts else Room)(self)

    def crash(self) -> None:
        """Its coroutines end with it."""
        self.stop_waiting()
        super().crash()

    def stop_waiting(self) -> None:
        """Nobody steps these coroutines any more."""
        for job in self.jobs.values():
            if job.waiting is not None:
                job.waiting.close()

    @property
    def num_growing(self) -> int:
        """See reservations.Running."""
        return sum(job.is_growing for job in self.jobs.values())

    @property
    def num_queued(self) -> int:
        """Handoffs on their way in."""
        over = (SinkState.COMMITTED, SinkState.ENDED)
        return sum(job.sink.state not in over for job in self.jobs.values())

    def on_decode(
        self, spec: Spec, fence: Fence, source: PrefillNode, num_forced: int, leave: Leave
    ) -> bool | None:
        """The router's call; idempotent by fence."""
        job = self.jobs.get(spec.handoff_id)
        if job is not None and fence <= job.sink.fence:
            SINK.advance(job.sink.state, SinkEvent.DECODE)
            return False
        if job is not None:
            self.end(job)
        if self.num_queued >= self.world.profile.max_queued:
            self.world.seen["refused by decode"] += 1
            self.network.send(None, self.router.on_decode_ended, spec, self, fence)
            return None
        self.world.checks.taken_up(str(self), spec.handoff_id, fence, self.world.now_s)
        job = self._open(spec, spec.handoff_id, fence)
        job.num_tokens = spec.num_prompt_tokens + num_forced
        self.at(spec.deadline_s, self.end, job)
        self.fetching.open(job, source, leave)
        return None

    def on_retarget(
        self, spec: Spec, fence: Fence, source: PrefillNode, num_forced: int, leave: Leave
    ) -> None:
        """Another prefill will deliver."""
        job = self.jobs.get(spec.handoff_id)
        refused = self.router.on_retarget_refused
        if job is None:
            self.network.send(None, refused, spec, self, fence, None)
            return
        try:
            job.sink.retarget(fence)
        except StaleFence:
            return
        except WrongState:
            self.network.send(None, refused, spec, self, fence, job.sink.state)
            return
        self.world.checks.taken_up(str(self), spec.handoff_id, fence, self.world.now_s)
        job.is_admitted = False
        job.num_tokens = spec.num_prompt_tokens + num_forced
        self.fetching.close(job)
        self.fetching.open(job, source, leave)

    def on_stop(self, handoff_id: HandoffId, fence: Fence) -> bool | None:
        """End it, whatever it does; an unknown one is remembered."""
        job = self.jobs.get(handoff_id)
        if job is None:
            job = self._open(None, handoff_id, fence)
        elif fence < job.sink.fence:
            return False
        # The tombstone must also stop calls of this fence that are still under way.
        job.sink.fence = fence
        self.world.checks.ended(str(self), handoff_id, fence, self.world.now_s)
        if self.end(job):
            return None
        self._bury(job)
        return False

    def end(self, job: Job) -> bool:
        """Give its blocks back and keep a tombstone."""
        is_new = job.sink.stop()
        if is_new:
            self.fetching.close(job)
            self.blocks.release(job.block_ids, BlockState.OWNED)
            job.block_ids = ()
            self._bury(job)
        return is_new

    def admit(self, job: Job) -> None:
        """The scheduler's next step makes room for it."""
        job.is_admitted = True

    def buried(self, job: Job) -> None:
        """The sink has ended by itself."""
        self.fetching.close(job)
        self._bury(job)

    def settle(self) -> None:
        """Give room to handoffs."""
        self.room.settle()
        super().settle()

    def reserved(self, job: Job, credit: int) -> None:
        """There is room for so many tokens of it: the source may send them."""
        sink = job.sink
        assert job.spec is not None
        job.progress_at_s = self.world.now_s
        self.world.checks.alone(sink, job.writing)
        cached = sink.block_ids[: sink.num_cached_tokens // LAYOUT.block_size]
        self.world.checks.holds(self, job.spec, cached)
        self.world.checks.granted(job.stream_id, sink, credit)
        if credit and job.source is not None:
            to, args = job.source.sending, (job.stream_id, credit, sink.num_cached_tokens)
            self.network.send(job.source, to.on_credit, *args)

    def _open(self, spec: Spec | None, handoff_id: HandoffId, fence: Fence) -> Job:
        sink = self.world.parts.sink(
            handoff_id=handoff_id, layout=LAYOUT, blocks=self.blocks, fence=fence
        )
        job = self.jobs[handoff_id] = Job(spec, sink)
        return job

    def _bury(self, job: Job) -> None:
        job.forget_at_s = self.world.now_s + LEASE * TICK_S
        self.later(LEASE, self._forget, job)

    def _forget(self, job: Job) -> bool:
        if self.jobs.get(job.sink.handoff_id) is not job or self.world.now_s < job.forget_at_s:
            return False
        del self.jobs[job.sink.handoff_id]
        return True

    def num_remembered(self) -> int:
        """Handoffs and tombstones, and what is lent."""
        return len(self.jobs) + super().num_remembered()
