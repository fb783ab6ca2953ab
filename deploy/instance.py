"""One instance as a process: its spec, its model, its server.

python -m deploy.instance --spec-json JSON
"""

import asyncio
import json
import logging
import secrets
import socket
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from core.capability import Capabilities
from core.clock import MonotonicClock
from core.config import Config, build
from core.errors import BatonError, ConfigError, ModelError
from core.ids import InstanceId
from core.kv_layout import STORED
from core.member import MAX_STRING_CHARS, Member, Role
from core.parallel import ParallelLayout
from core.prefix import KEY_BYTES
from core.work import PROTOCOL_VERSION, Peer
from deploy.assembly import SERVICE_NAMES, Compute, Parts, assemble
from deploy.fingerprint import config_digest, fingerprint
from engine.ranks.errors import RankLost
from kv_transfer.memory import keep_freed_memory
from registry.api import Registry, SharedKeyDamaged, key_from_text
from registry.connect import connect
from registry.heartbeat import keep_announced
from registry.shared import Shared, join_shared, keep_shared
from rpc.dial import ChannelPool
from rpc.options import Plane
from rpc.process import run_process
from rpc.serve import Life, Loop, Server, bind, serve
from rpc.serve import build as build_server
from text.grammar import GrammarCompiler
from text.tokenizer import Tokenizer
from worker_host.callbacks import CallbackErrors
from worker_host.role import Post

if TYPE_CHECKING:
    from engine.forward import Forward
    from engine.kv_cache import KvMemory

logger = logging.getLogger(__name__)

NUM_COPY_THREADS = 2
"""One gathers while the other scatters; a copy holds no lock while it moves bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSpec:
    """Everything one instance is told."""

    instance_id: InstanceId
    role: Role
    model_dir: Path
    config: Config = field(default_factory=Config)
    layout: ParallelLayout = field(default_factory=ParallelLayout)
    """Its ranks: this process and its children."""
    model_name: str = ""
    """As clients ask for it; empty: as the folder is called. What may be paired is told by the
    fingerprint alone, so that other weights can follow under the same name."""
    registry_url: str | None = None
    """None: it announces itself to nobody."""
    cluster: str = "baton"
    host: str = "127.0.0.1"
    """What it listens on, and what others call."""
    port: int = 0
    """0 takes any free one."""
    drain_s: float = 5.0
    """How long work under way may take after the stop."""
    cluster_key: str = field(default="", repr=False)
    """For benchmarks and tests, as hexadecimal: proposed to the registry, or the key where there is
    none. Empty: a random one, so that without a registry nobody may fetch from here."""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self) | {"model_dir": str(self.model_dir)})

    @classmethod
    def from_json(cls, text: str) -> "InstanceSpec":
        """What `to_json` wrote. Raises ConfigError."""
        try:
            table = json.loads(text)
            table["model_dir"] = Path(table["model_dir"])
            table["role"] = Role(table["role"])
            problems: list[str] = []
            config = build(Config, table.pop("config", {}), "config", problems)
            layout = build(ParallelLayout, table.pop("layout", {}), "layout", problems)
            problems += [] if config is None else config.problems()
            problems += [] if layout is None else layout.problems()
            problems += _key_problems(table.get("cluster_key", ""))
            problems += _name_problems(table.get("model_name", ""))
            if problems or config is None or layout is None:
                raise ConfigError(tuple(problems))
            return cls(**table, config=config, layout=layout)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError((f"instance: {type(error).__name__}: {error}",)) from error


def _key_problems(text: object) -> list[str]:
    """Of a cluster_key; never shows it."""
    try:
        if text != "":
            key_from_text(str(text))
    except SharedKeyDamaged as error:
        return [f"cluster_key: {error}"]
    return []


def _name_problems(name: object) -> list[str]:
    """Of a model_name: told before the model is loaded."""
    if not isinstance(name, str) or not name.isprintable():
        return ["model_name must be printable text"]
    if len(name) > MAX_STRING_CHARS:
        return [f"model_name has {len(name)} characters, limit {MAX_STRING_CHARS}"]
    return []


def load_compute(spec: InstanceSpec) -> Compute:
    """Load the model and warm it up; takes seconds to minutes."""
    # Here and not above: whoever only names an InstanceSpec needs no torch.
    from engine.grammars import GrammarStates
    from engine.runner import Runner
    from kv_transfer.digest import warm_up as warm_up_digest
    from kv_transfer.wire_format import warm_up as warm_up_wire_format

    lost: Future[None] = Future()
    # Running: whoever stops waiting for it does not cancel it under the thread that sets it.
    lost.set_running_or_notify_cancel()
    with ExitStack() as undo:
        forward = _forward(spec, lost, undo)
        model = forward.spec
        grammars = GrammarCompiler.load(
            spec.model_dir, vocab_size=model.vocab_size, eos_token_ids=model.eos_token_ids
        )
        runner = Runner(
            forward,
            num_threads=spec.config.engine.num_threads,
            grammars=GrammarStates(grammars),
        )
        runner.warm_up()
        warm_up_digest()
        if spec.config.handoff.wire_format != STORED:
            warm_up_wire_format()
        digest = Tokenizer.load(spec.model_dir).digest
        return Compute(
            model=model,
            runner=runner,
            store=runner.kv_cache,
            fingerprint=fingerprint(model, digest, config_digest(spec.model_dir)),
            check_grammar=grammars.check,
            lost=lost,
            close=undo.pop_all().close,
        )


def _forward(spec: InstanceSpec, lost: "Future[None]", undo: ExitStack) -> "Forward[KvMemory]":
    """The model on one rank or on several; `undo` ends the others."""
    from engine.ranks.start import start_ranks
    from engine.runner import model_forward
    from engine.self_check import load_checked

    engine = spec.config.engine
    if spec.layout.num_workers == 1:
        return model_forward(
            load_checked(spec.model_dir, engine),
            num_blocks=engine.num_blocks,
            block_size=engine.block_size,
        )
    if engine.weights != "stored":
        raise ModelError(
            f"engine.weights = {engine.weights!r} needs tp = 1 and pp = 1, not {spec.layout}"
        )
    forward = start_ranks(
        spec.model_dir,
        engine=engine,
        layout=spec.layout,
        on_lost=lambda reason: lost.set_exception(RankLost(reason)),
    )
    undo.callback(forward.close)
    return forward


async def run_instance(
    spec: InstanceSpec,
    *,
    stop: asyncio.Event,
    ready: Callable[[str], None],
    load: Callable[[InstanceSpec], Compute] = load_compute,
) -> None:
    """Serve until `stop` is set or a Drain call has been obeyed; `ready(address)` once it serves.

    Raises whatever ends a loop: a process that has lost one must not go on.
    """
    with (
        # Model and steps in one thread: torch keeps a pool of helpers for each that computes.
        ThreadPoolExecutor(1, thread_name_prefix="step") as step_thread,
        ThreadPoolExecutor(NUM_COPY_THREADS, thread_name_prefix="copy") as copies,
    ):
        compute = await asyncio.get_running_loop().run_in_executor(step_thread, load, spec)
        async with AsyncExitStack() as stack:
            stack.callback(compute.close)
            channels = ChannelPool()
            stack.push_async_callback(channels.close)
            server = await build_server(Plane.WORKER, SERVICE_NAMES)
            address = f"{spec.host}:{bind(server, f'{spec.host}:{spec.port}')}"
            registry = _registry(spec)
            if registry is not None:
                stack.push_async_callback(registry.close)
            shared = await shared_of(spec, registry, stop)
            own = Peer(spec.instance_id, address)
            parts = Parts(
                config=spec.config,
                compute=compute,
                member=member_of(spec, compute, address),
                step_thread=step_thread,
                copies=copies,
                prefix_key=shared.key,
                capabilities=Capabilities(shared.key, shared.now_s, own=own),
                dial=channels.get,
                stop=stop,
            )
            joined = None if registry is None else _Joined(registry, shared)
            try:
                await _serve(spec, parts, server, joined, ready)
            except* RankLost as errors:
                # The step that failed of it and the watch say the same; once is enough.
                raise errors.exceptions[0] from None


@dataclass(frozen=True, slots=True)
class _Joined:
    """What ties an instance to its cluster."""

    registry: Registry
    shared: Shared


async def shared_of(spec: InstanceSpec, registry: Registry | None, stop: asyncio.Event) -> Shared:
    """The cluster's key and time; without a registry the spec's, and a time of its own.

    Raises RegistryUnavailable when the registry stays away: with a key of its own an instance
    could neither fetch nor be fetched from.
    """
    clock = MonotonicClock()
    given = key_from_text(spec.cluster_key) if spec.cluster_key else None
    if registry is None:
        return Shared(clock, given or secrets.token_bytes(KEY_BYTES), 0.0)
    return await join_shared(registry, clock, stop=stop, proposal=given)


def member_of(spec: InstanceSpec, compute: Compute, address: str) -> Member:
    """What the others are told."""
    engine, model = spec.config.engine, compute.model
    # A longer request would be refused at the door: its KV does not fit.
    capacity = max(1, engine.num_blocks * engine.block_size)
    return Member(
        instance_id=spec.instance_id,
        role=spec.role,
        addresses=(address,),
        fingerprint=compute.fingerprint,
        model=spec.model_name or model.name,
        incarnation=secrets.token_hex(8),
        host_id=socket.gethostname(),
        protocol_version=PROTOCOL_VERSION,
        block_size=engine.block_size,
        max_context_tokens=min(model.max_context_tokens, capacity),
        num_blocks=engine.num_blocks,
    )


async def announce(registry: Registry, post: Post, left: asyncio.Event) -> None:
    """Keep it known to the others until `left` is set, which shows at the next beat, or until
    cancelled; another role is told at once."""

    async def until_next_beat(_: asyncio.Event, interval_s: float) -> None:
        await post.await_change(interval_s)

    await keep_announced(registry, lambda: post.member, stop=left, wait=until_next_beat)


async def _await_loss(compute: Compute) -> None:
    await asyncio.wrap_future(compute.lost)


def _registry(spec: InstanceSpec) -> Registry | None:
    return None if spec.registry_url is None else connect(spec.registry_url, spec.cluster)


async def _serve(
    spec: InstanceSpec,
    parts: Parts,
    server: Server,
    joined: _Joined | None,
    ready: Callable[[str], None],
) -> None:
    assembled = assemble(parts, server)
    is_ready = asyncio.Event()

    async def say_ready() -> None:
        # Behind the other loops: all that live as long as the process have begun.
        assembled.books.count_from_here()
        is_ready.set()
        ready(parts.member.leader_address)

    life = Life(ready=is_ready, stop=parts.stop, drain=assembled.host.drain, drain_s=spec.drain_s)
    errors = CallbackErrors()
    asyncio.get_running_loop().set_exception_handler(errors.handle)
    # An instance that lost a rank has lost a part of the model: it ends, with the reason.
    loops: list[Loop] = [
        *assembled.loops,
        errors.run,
        partial(_await_loss, parts.compute),
        say_ready,
    ]
    if joined is not None:
        # Never set: it is a member until it has drained, and is withdrawn by the cancel.
        left = asyncio.Event()
        loops[:0] = [
            partial(announce, joined.registry, assembled.post, left),
            partial(
                keep_shared,
                joined.shared,
                joined.registry,
                parts.capabilities.change_key,
                stop=left,
            ),
        ]
    with closing(assembled.carriers):
        await serve(server, loops, life)


async def run_in_own_process(
    spec: InstanceSpec, *, stop: asyncio.Event, ready: Callable[[str], None]
) -> None:
    """`run_instance`, in a process that does nothing else."""
    keep_freed_memory()
    await run_instance(spec, stop=stop, ready=ready)


def main() -> None:
    """Serve; an error of ours is one line on standard error and exit status 1."""
    try:
        run_process("python -m deploy.instance", InstanceSpec.from_json, run_in_own_process)
    except BatonError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
