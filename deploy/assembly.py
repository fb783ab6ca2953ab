"""An instance's objects and who is given whom; nothing here lives, loads or listens."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import grpc.aio

from core.capability import Capabilities
from core.clock import MonotonicClock
from core.config import Config, EngineConfig, HandoffConfig
from core.failpoints import Failpoints
from core.ids import Fingerprint
from core.kv_layout import KvLayout
from core.load import Load
from core.member import Member
from core.model_spec import ModelSpec
from core.request import Grammar
from decode_worker.desk import DecodeDesk
from decode_worker.parts import DecodeParts
from decode_worker.service import DecodeService
from engine.block_allocator import BlockAllocator
from kv_transfer.book import SourceBook
from kv_transfer.carriers.choose import Carriers
from kv_transfer.carriers.shm import ShmCarrier
from kv_transfer.fetch import Fetcher
from kv_transfer.kv_host import KvHost
from kv_transfer.local import LocalFetch, NearestFetch
from kv_transfer.service import KvTransferService
from kv_transfer.shelf import Shelf
from kv_transfer.stores import KvStore
from prefill_worker.costs import Costs, MeasuredCosts
from prefill_worker.overlap import Overlap
from prefill_worker.phase import PrefillParts, PrefillPhase
from prefill_worker.prefix_fetch import PrefixFetch
from prefill_worker.service import PrefillService
from rpc.pb import cluster_pb2, cluster_pb2_grpc, kv_transfer_pb2, workers_pb2, workers_pb2_grpc
from rpc.serve import Loop, Server
from worker_host.blocks import InstanceBlocks
from worker_host.books import Books, load_of
from worker_host.cluster_service import ClusterService
from worker_host.door import Door
from worker_host.holds import StepHolds
from worker_host.host import WorkerHost
from worker_host.lag import LagMonitor
from worker_host.role import Post, RoleBudget
from worker_host.steps import StepLoop, StepRunner
from worker_host.watchdog import Watchdog

SERVICE_NAMES = (
    workers_pb2.DESCRIPTOR.services_by_name["PrefillWorker"].full_name,
    workers_pb2.DESCRIPTOR.services_by_name["DecodeWorker"].full_name,
    kv_transfer_pb2.DESCRIPTOR.services_by_name["KvTransfer"].full_name,
    cluster_pb2.DESCRIPTOR.services_by_name["Cluster"].full_name,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """A loaded model, and what is known of it."""

    model: ModelSpec
    runner: StepRunner
    store: KvStore
    fingerprint: Fingerprint
    check_grammar: Callable[[Grammar], None] | None = None
    """Raises InvalidRequest for a grammar that `runner` could not follow; None: it follows none."""
    lost: Future[None] = field(default_factory=Future)
    """Fails when a rank is lost, in any thread; the instance then has to end."""
    close: Callable[[], None] = lambda: None
    """Ends the other ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What an instance is put together from."""

    config: Config
    compute: Compute
    member: Member
    """As it starts: its role may change."""
    step_thread: Executor
    copies: Executor
    prefix_key: bytes = field(repr=False)
    """The cluster's secret behind the names of KV blocks."""
    capabilities: Capabilities
    """Whom it may fetch from, and who from it."""
    dial: Callable[[str], grpc.aio.Channel]
    stop: asyncio.Event
    costs: Costs = field(default_factory=MeasuredCosts)
    """Of computing KV and of fetching it; nothing else measures into it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """An instance ready to run."""

    books: Books
    host: WorkerHost
    post: Post
    loops: Sequence[Loop]
    carriers: Carriers
    """To be closed once nothing is served any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Common:
    """What both phases share."""

    layout: KvLayout
    blocks: InstanceBlocks
    holds: StepHolds
    door: Door
    work: asyncio.Event
    post: Post
    clock: MonotonicClock
    kv_host: KvHost
    book: SourceBook
    fetcher: Fetcher


def assemble(parts: Parts, server: Server) -> Assembled:
    """Put an instance together and add its services to `server`."""
    common = _common(parts)

    def budget() -> RoleBudget:
        return common.post.budget(has_answers=desk.num_requests > 0)

    prefill = PrefillPhase(_prefill_parts(parts, common, budget))

    def load() -> Load:
        phases = (desk.phase.load(), prefill.load())
        return load_of(phases, common.blocks, common.door)

    desk = DecodeDesk(_decode_parts(parts, common, load))
    lag = LagMonitor(common.clock)

    def on_turn() -> None:
        desk.routers.load_changed()
        host.turned()

    steps = StepLoop(
        runner=parts.compute.runner,
        # Decode first: running answers wait for every other token of a step.
        phases=(desk.phase, prefill),
        executor=parts.step_thread,
        holds=common.holds,
        clock=common.clock,
        lag=lag,
        work=common.work,
        on_turn=on_turn,
    )
    books = Books(
        phases=(desk.phase, prefill),
        blocks=common.blocks,
        door=common.door,
        steps=steps,
        lag=lag,
        book=common.book,
        fetcher=common.fetcher,
    )
    host = WorkerHost(
        books,
        common.door,
        work=common.work,
        stop=parts.stop,
        report=server.report,
        say_goodbye=desk.routers.close,
    )
    watchdog = Watchdog(lambda: steps.running_since_s, host.report_health, common.clock)
    _add_services(parts, common, server, prefill, desk)
    cluster_pb2_grpc.add_ClusterServicer_to_server(ClusterService(host, common.post), server.grpc)
    return Assembled(
        books=books,
        host=host,
        post=common.post,
        carriers=common.kv_host.carriers,
        loops=(
            steps.run,
            desk.run,
            common.book.reap,
            common.fetcher.run_releases,
            watchdog.run,
            host.run,
        ),
    )


def _common(parts: Parts) -> _Common:
    engine, handoff = parts.config.engine, parts.config.handoff
    compute, clock = parts.compute, MonotonicClock()
    layout = KvLayout.of(compute.model, engine.block_size)
    blocks = _blocks(engine, parts.prefix_key)
    kv_host = KvHost(
        instance_id=parts.member.instance_id,
        fingerprint=compute.fingerprint,
        layout=layout,
        store=compute.store,
        copies=parts.copies,
        carriers=_carriers(parts.member, handoff),
        clock=clock,
        config=handoff,
        failpoints=Failpoints.parse(handoff.failpoints),
    )
    work = asyncio.Event()
    blocks.on_freed(work.set)
    return _Common(
        layout=layout,
        blocks=blocks,
        holds=StepHolds(blocks),
        door=Door(compute.fingerprint, engine.num_blocks, engine.block_size, compute.check_grammar),
        work=work,
        post=Post(parts.member, parts.config.worker, work=work),
        clock=clock,
        kv_host=kv_host,
        book=SourceBook(layout=layout, blocks=blocks, clock=clock, config=handoff),
        fetcher=Fetcher(kv_host, parts.dial),
    )


def _carriers(own: Member, handoff: HandoffConfig) -> Carriers:
    if handoff.carrier != "torchdist":
        return Carriers((ShmCarrier(),), handoff.carrier)
    # Here and not above: it brings torch, and whoever only names an instance needs none.
    from kv_transfer.carriers.torchdist import TorchDistCarrier, host_of

    # Its groups listen where the instance does: nobody goes elsewhere to meet it.
    host = host_of(own.leader_address)
    pair_groups = TorchDistCarrier(host, handoff.progress_timeout_s)
    return Carriers((ShmCarrier(), pair_groups), handoff.carrier)


def _blocks(engine: EngineConfig, prefix_key: bytes) -> InstanceBlocks:
    if engine.prefix_cache:
        return InstanceBlocks.cached(engine.num_blocks, engine.block_size, prefix_key)
    return InstanceBlocks(BlockAllocator(engine.num_blocks, engine.block_size))


def _prefill_parts(parts: Parts, common: _Common, budget: Callable[[], RoleBudget]) -> PrefillParts:
    worker = parts.config.worker
    return PrefillParts(
        blocks=common.blocks,
        holds=common.holds,
        layout=common.layout,
        book=common.book,
        door=common.door,
        clock=common.clock,
        work=common.work,
        budget=budget,
        max_queued=worker.max_queued,
        ageing_s=worker.ageing_s,
        costs=parts.costs,
        overlap=Overlap(
            layout=common.layout,
            handoff=parts.config.handoff,
            costs=parts.costs,
            moving=common.kv_host.moving,
        ),
    )


def _prefix_fetch(parts: Parts, common: _Common) -> PrefixFetch:
    return PrefixFetch(
        fetches=common.fetcher,
        blocks=common.blocks,
        layout=common.layout,
        costs=parts.costs,
        clock=common.clock,
        config=parts.config.handoff,
        own_address=parts.member.leader_address,
    )


def _decode_parts(parts: Parts, common: _Common, load: Callable[[], Load]) -> DecodeParts:
    return DecodeParts(
        blocks=common.blocks,
        holds=common.holds,
        layout=common.layout,
        model=parts.compute.model,
        store=parts.compute.store,
        copies=parts.copies,
        num_swap_blocks=parts.config.engine.num_swap_blocks,
        door=common.door,
        clock=common.clock,
        work=common.work,
        fetches=NearestFetch(
            parts.member.leader_address,
            LocalFetch(common.book, common.clock, parts.config.handoff),
            common.fetcher,
        ),
        load=load,
        worker=parts.config.worker,
        handoff=parts.config.handoff,
    )


def _add_services(
    parts: Parts, common: _Common, server: Server, prefill: PrefillPhase, desk: DecodeDesk
) -> None:
    compute = parts.compute
    workers_pb2_grpc.add_PrefillWorkerServicer_to_server(
        PrefillService(
            prefill,
            _prefix_fetch(parts, common),
            common.door,
            compute.model,
            common.clock,
            parts.capabilities,
        ),
        server.grpc,
    )
    workers_pb2_grpc.add_DecodeWorkerServicer_to_server(
        DecodeService(desk, common.door, compute.model, parts.capabilities), server.grpc
    )
    KvTransferService(
        book=common.book,
        shelf=Shelf(common.book, common.blocks, common.clock),
        host=common.kv_host,
        capabilities=parts.capabilities,
    ).add_to(server.grpc)
