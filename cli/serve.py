"""`baton serve`: a cluster in the foreground."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cli.errors import error_console, serve_extra_missing
from cli.fetch import step_lines
from cli.running import announced
from core.config import Config, WorkerConfig, load
from core.errors import BatonError
from core.plan import Plan, load_plan
from core.profile import load as load_profile
from router.spec import Speed, speed_of

if TYPE_CHECKING:
    from rich.console import Console

    from deploy.cluster import ClusterSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The command line."""

    model: str | None
    """A folder, a .gguf file or hf:ORG/NAME@COMMIT."""
    plan: Path | None
    config: Path | None
    profile: Path | None
    registry: str | None
    port: int
    http_port: int
    name: str
    log_level: str
    log_format: str


def serve_cluster(options: ServeOptions) -> None:
    """Serve until SIGINT or SIGTERM; errors are one message and exit status 1, 2 or 4."""
    console = error_console()
    try:
        asyncio.run(_serve(_spec(options, console), console))
    except ModuleNotFoundError as error:
        console.print(serve_extra_missing(error))
        raise typer.Exit(4) from None
    except FileNotFoundError as error:
        console.print(f"{error.filename}: no such file")
        raise typer.Exit(2) from None
    except BatonError as error:
        console.print(str(error))
        raise typer.Exit(2 if error.status == "INVALID_ARGUMENT" else 1) from None


def _spec(options: ServeOptions, console: "Console") -> "ClusterSpec":
    from deploy.cluster import ClusterSpec, threads_per_instance

    plan = load_plan(options.plan) if options.plan else Plan()
    config = load(options.config) if options.config else Config()
    if not options.config:
        engine = replace(config.engine, num_threads=threads_per_instance(plan))
        config = replace(config, engine=engine)
    speed = Speed()
    if options.profile:
        profile = load_profile(options.profile)
        config, speed = saturating(config, profile.l_m_tokens), speed_of(profile)
    return ClusterSpec(
        plan=plan,
        model_dir=_model_dir(options.model or plan.model, console),
        config=config,
        speed=speed,
        name=options.name,
        registry_url=options.registry,
        router_port=options.port,
        http_port=options.http_port,
        log_level=options.log_level,
        log_format=options.log_format,
    )


def saturating(config: Config, l_m_tokens: int) -> Config:
    """Prefill steps of the profile's L_m tokens, unless the settings name a size."""
    if config.worker.prefill_step_tokens != WorkerConfig().prefill_step_tokens:
        return config
    return replace(config, worker=replace(config.worker, prefill_step_tokens=l_m_tokens))


def _model_dir(name: str, console: "Console") -> Path:
    from deploy.default_model import default_model_dir
    from deploy.model_source import resolve_model

    if name:
        with step_lines(console) as on_progress:
            return resolve_model(name, on_progress)
    folder = default_model_dir()
    if not folder.is_dir():
        raise _NoModel("no model: `baton fetch` fetches the default one, or name one with --model")
    return folder


class _NoModel(BatonError):
    status = "FAILED_PRECONDITION"


async def _serve(spec: "ClusterSpec", console: "Console") -> None:
    from deploy.interrupt import Interrupted, until_signal

    try:
        await until_signal(_serve_forever(spec, console))
    except Interrupted as interrupted:
        console.print(str(interrupted))
        raise typer.Exit(interrupted.exit_status) from None


async def _serve_forever(spec: "ClusterSpec", console: "Console") -> None:
    from deploy.cluster import start_cluster

    async with start_cluster(spec, lambda text: console.print(text, style="dim")) as cluster:
        with announced(spec.name, cluster.router_addresses, cluster.http_addresses):
            console.print(f"serving {spec.model_dir.name}")
            console.print(f"  gRPC    {', '.join(cluster.router_addresses)}")
            urls = ", ".join(f"http://{address}/v1" for address in cluster.http_addresses)
            console.print(f"  OpenAI  {urls}")
            console.print("ask with: baton generate 'Why is the sky blue?'; Ctrl-C stops")
            # For a cluster that serves, the signal is the regular end.
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
