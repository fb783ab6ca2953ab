"""A router process: its parts put together, served, announced and drained.

python -m router.server --spec-json JSON: prints {"address": ...} once it serves.
"""

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress

from core.capability import Capabilities
from core.clock import Clock, MonotonicClock
from core.ids import Fingerprint, InstanceId
from core.member import Member, Role
from core.work import PROTOCOL_VERSION
from registry.api import Registry, RegistryUnavailable
from registry.connect import connect
from registry.heartbeat import keep_announced
from registry.shared import Shared, join_shared, keep_shared
from router import cluster_service, generation_service, settings_service
from router.cluster_service import ClusterService, Records
from router.explain import explained
from router.gauges import RouterGauges
from router.generation_service import GenerationService
from router.history import History
from router.http.app import build_app
from router.http.listen import bind_http, listening
from router.kserve import service as kserve_service
from router.kserve.service import KserveService
from router.loop_lag import watch_loop_lag
from router.membership import Membership
from router.metrics import Metrics
from router.orchestrator import Orchestrator
from router.outliers import Outliers
from router.placer import Placer
from router.prefix_index import PromptNames
from router.quotas import Quotas
from router.recorder import Recorder, Traces
from router.retries import Retries
from router.served_model import ServedModel
from router.settings_service import SettingsService
from router.spec import RouterSpec
from router.steering import Steering, use_log_level
from router.surroundings import Surroundings
from router.suspects import Suspects
from router.view import View
from rpc.options import Plane
from rpc.pb import cluster_pb2
from rpc.process import run_process
from rpc.serve import Life, bind, build, serve

__all__ = ["RouterSpec", "run_router"]

logger = logging.getLogger(__name__)

Ready = Callable[[str], None]
"""Told host:port once calls are answered."""


async def run_router(
    spec: RouterSpec,
    *,
    stop: asyncio.Event,
    ready: Ready,
    registry: Registry | None = None,
    clock: Clock | None = None,
) -> None:
    """Serve until `stop` is set; then drain and end."""
    clock = clock or MonotonicClock()
    model = await asyncio.to_thread(ServedModel.load, spec.model_dir)
    owned = connect(spec.registry_url, spec.cluster, clock=clock) if registry is None else registry
    try:
        shared = await join_shared(owned, clock, stop=stop)
        router = _Router(spec, model, owned, shared)
        try:
            await router.run(stop, ready)
        finally:
            await router.close()
    finally:
        if registry is None:
            await owned.close()


class _Router:
    """The parts of one router."""

    def __init__(
        self, spec: RouterSpec, model: ServedModel, registry: Registry, shared: Shared
    ) -> None:
        self._spec = spec
        self._registry = registry
        self._shared = shared
        self._capabilities = Capabilities(shared.key, shared.now_s)
        config = spec.config
        view = View(spec.speed.model(), shared.clock)
        suspects, outliers = Suspects(shared.clock), Outliers(view.fleet, shared.clock)
        self._membership = Membership(
            registry, spec.router_id, view, suspects, silence_s=config.silence_s
        )
        prompts = PromptNames(shared.key)
        placer = Placer(self._membership, outliers, prompts, config, seed=secrets.randbits(32))
        self._quotas = Quotas(registry, spec.router_id, shared.clock)
        self._recorder = _recorder(spec, shared.clock)
        around = Surroundings(
            router_id=spec.router_id,
            membership=self._membership,
            placer=placer,
            quotas=self._quotas,
            recorder=self._recorder,
            clock=shared.clock,
            capabilities=self._capabilities,
            prompts=prompts,
            outliers=outliers,
            retries=Retries(shared.clock),
            suspects=suspects,
            max_attempts=config.max_attempts,
        )
        self._orchestrator = Orchestrator(around, model, config)
        gauges = RouterGauges(self._membership, self._orchestrator.admission, spec)
        self._recorder.metrics.add(gauges)
        users = (self._orchestrator.use, placer.use, self._quotas.use, use_log_level)
        self._steering = Steering(registry, users)

    def _explain(self, request_id: str) -> cluster_pb2.ExplainReply:
        record = self._recorder.history.get(request_id)
        return explained(record, self._spec.router_id, self._shared.clock.now_s())

    def _workload(self, request: cluster_pb2.WorkloadRequest) -> cluster_pb2.WorkloadReply:
        admission = self._orchestrator.admission
        return self._recorder.ended.reply(
            request,
            self._shared.clock.now_s(),
            num_open=admission.num_running + admission.num_queued,
        )

    async def close(self) -> None:
        """After `run`: whoever keeps books delivers them."""
        await self._recorder.close()

    async def run(self, stop: asyncio.Event, ready: Ready) -> None:
        """Serve until `stop`, or until a Drain call has been carried out."""
        names = (
            generation_service.SERVICE,
            cluster_service.SERVICE,
            settings_service.SERVICE,
            kserve_service.SERVICE,
        )
        server = await build(Plane.CLIENT, names)
        GenerationService(self._orchestrator).add_to(server.grpc)
        KserveService(self._orchestrator, self._membership).add_to(server.grpc)
        admission = self._orchestrator.admission
        listener = bind_http(self._spec.host, self._spec.http_port)
        cluster = ClusterService(
            self._membership,
            admission,
            self._steering,
            drain=lambda _: stop.set(),
            records=Records(explain=self._explain, workload=self._workload),
            http_address=f"{self._spec.host}:{listener.getsockname()[1]}",
        )
        cluster.add_to(server.grpc)
        SettingsService(self._registry, self._steering).add_to(server.grpc)
        address = f"{self._spec.host}:{bind(server, f'{self._spec.host}:{self._spec.port}')}"
        member = _member(self._spec, address)
        serving = asyncio.Event()

        async def announce() -> None:
            with suppress(RegistryUnavailable):
                # Before the first request, where that can be.
                await self._steering.refresh()
                await self._quotas.reconcile()
            serving.set()
            ready(address)
            await keep_announced(self._registry, lambda: member, stop=stop)

        async def share() -> None:
            await keep_shared(
                self._shared, self._registry, self._capabilities.change_key, stop=stop
            )

        life = Life(
            ready=serving, stop=stop, drain=self._orchestrator.drain, drain_s=self._spec.drain_s
        )
        metrics = self._recorder.metrics

        async def watch_lag() -> None:
            await watch_loop_lag(self._shared.clock, metrics.lagged)

        loops = (
            *(self._membership.run, announce, share),
            *(self._steering.run, self._quotas.run, watch_lag),
        )
        app = build_app(self._orchestrator, self._membership, metrics.exposition)
        async with listening(app, listener):
            await serve(server, loops, life)


def _recorder(spec: RouterSpec, clock: Clock) -> Recorder:
    config = spec.config
    history = History(slow_ttft_s=config.slo_ttft_s, slow_tpot_s=config.slo_tpot_s)
    return Recorder(clock, Metrics(), history, _traces(spec))


def _traces(spec: RouterSpec) -> Traces | None:
    if not spec.config.otlp_endpoint:
        return None
    # Here, because few routers need what it imports.
    from router.otlp import otlp_tracing

    return otlp_tracing(spec.router_id, spec.config)


def _member(spec: RouterSpec, address: str) -> Member:
    return Member(
        instance_id=InstanceId(spec.router_id),
        role=Role.ROUTER,
        addresses=(address,),
        fingerprint=Fingerprint(""),
        model="",
        incarnation=secrets.token_hex(8),
        host_id=socket.gethostname(),
        protocol_version=PROTOCOL_VERSION,
        block_size=0,
        max_context_tokens=0,
        num_blocks=0,
    )


if __name__ == "__main__":
    run_process("python -m router.server", RouterSpec.from_json, run_router)
