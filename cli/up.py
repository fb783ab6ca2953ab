"""`baton up`."""

import asyncio
import json
import sys
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import cluster_options as o
from cli.errors import error_console, serve_extra_missing, typed
from cli.parts import Parts, parts_table
from core.config import Config, load
from core.errors import BatonError
from core.logs import LogFormat
from core.plan import parse_plan

if TYPE_CHECKING:
    from rich.console import Console

    from cli.running import ClusterNote
    from deploy.bring_up import Ground, Site
    from deploy.controller.deployment import Deployment
    from rpc.pb.controller_pb2 import ClusterState, DeployReply

DEFAULT_NAME = "baton"
FIT_TIMEOUT_S = 60.0
"""The controller asks Ray for its hosts before it answers."""
FIRST_TOKEN_TIMEOUT_S = 60.0

PlanFile = Annotated[
    Path, typer.Argument(metavar="PLAN", help="plan.toml: by hand, or of `baton plan --out`.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(help="Settings as TOML; default: PLAN's plan.config.toml, if it lies beside it."),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="Folder of safetensors, .gguf file or hf:ORG/NAME@COMMIT, in place of the plan's; "
        "default: the default model. Every host looks for it, and keeps its own copy."
    ),
]
Profile = Annotated[
    Path | None, typer.Option(help="Of `baton profile`: what routers predict by, and step sizes.")
]
RayAddress = Annotated[
    str,
    typer.Option(
        "--address",
        help="host:port of a running Ray cluster, of which this machine is a node; default: a Ray "
        "of our own, on this machine alone.",
    ),
]
RegistryUrl = Annotated[
    str, typer.Option(help="redis:// or rediss:// URL; default: a Valkey of our own.")
]
Gpus = Annotated[
    int | None,
    typer.Option(min=0, help="Of this machine, for a Ray of our own; default: all that are found."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done; start at most the controller.")
]
LogLevel = Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")]
LogLines = Annotated[LogFormat, typer.Option(help="Lines for people, or objects for machines.")]


def up(  # noqa: PLR0913 - each is an option of the command line
    plan: PlanFile,
    config: ConfigFile = None,
    model: Model = None,
    profile: Profile = None,
    address: RayAddress = "",
    registry: RegistryUrl = "",
    gpus: Gpus = None,
    name: Annotated[str, typer.Option(help="The cluster's name.")] = DEFAULT_NAME,
    log_level: LogLevel = "WARNING",
    log_format: LogLines = LogFormat.TEXT,
    *,
    dry_run: DryRun = False,
    json_output: o.Json = False,
) -> None:
    """Bring a cluster to a plan, and leave it running: first start, or change of a running one.

    Run again it changes only what differs: pools grow and shrink, roles change without a reload,
    other weights or settings replace instances one by one, and no request fails. A plan that does
    not fit says what is missing before anything starts. `baton down` ends the cluster.
    """
    console = error_console()
    options = UpOptions(
        plan=plan,
        config=config,
        model=model,
        profile=profile,
        name=name,
        log_level=log_level,
        log_format=log_format.value,
        dry_run=dry_run,
        json_output=json_output,
    )
    try:
        from deploy.bring_up import Site
        from deploy.interrupt import until_signal
        from deploy.inventory.host import num_gpus_here

        site = Site(
            name=name,
            ray_address=address,
            registry_url=registry,
            num_gpus=num_gpus_here() if gpus is None else gpus,
            log_level=log_level,
            log_format=log_format.value,
        )
        asyncio.run(until_signal(_up(options, site, console)))
    except ModuleNotFoundError as error:
        console.print(serve_extra_missing(error))
        raise typer.Exit(4) from None
    except FileNotFoundError as error:
        console.print(f"{error.filename}: no such file")
        raise typer.Exit(2) from None
    except (BatonError, ExceptionGroup) as error:
        told = typed(error)
        console.print(str(told))
        raise typer.Exit(2 if told.status == "INVALID_ARGUMENT" else 1) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """The command line, but for where the cluster stands."""

    plan: Path
    config: Path | None
    model: str | None
    profile: Path | None
    name: str
    log_level: str
    log_format: str
    dry_run: bool
    json_output: bool


class StartFailed(BatonError):
    """A member did not come up; the controller goes on trying."""

    status = "FAILED_PRECONDITION"


async def _up(options: UpOptions, site: "Site", console: "Console") -> None:
    from deploy.bring_up import prepare

    say = partial(console.print, style="dim")
    parts = Parts()
    deployment = await asyncio.to_thread(_deployment, options, site, say)
    if not site.ray_address:
        await prepare(deployment)
    parts.end("look at plan and model")
    ground = await _ground(deployment, site, say, parts)
    reply = await _deploy(ground, deployment, dry_run=options.dry_run)
    if options.dry_run:
        _show_changes(reply, console)
        return
    state = await _settled(options.name, say)
    parts.end("instances and routers")
    note = _note(site, ground, state)
    await _first_token(note)
    parts.end("first token")
    _show(note, state, parts, console, json_output=options.json_output)


def _deployment(options: UpOptions, site: "Site", say: "partial[None]") -> "Deployment":
    from core.profile import load as load_profile
    from deploy.cluster import threads_per_instance
    from deploy.controller.deployment import Deployment
    from router.spec import Speed, speed_of

    text = options.plan.read_text(encoding="utf-8")
    plan = parse_plan(text, str(options.plan))
    config = _config(options, threads_per_instance(plan))
    speed, profile_json = Speed(), ""
    if options.profile:
        from cli.serve import saturating

        profile = load_profile(options.profile)
        profile_json = options.profile.read_text(encoding="utf-8")
        config, speed = saturating(config, profile.l_m_tokens), speed_of(profile)
    return Deployment(
        plan_toml=text,
        model=_model(options.model or plan.model, site, say),
        config=config,
        speed=speed,
        profile_json=profile_json,
        log_level=options.log_level,
        log_format=options.log_format,
    )


def _config(options: UpOptions, num_threads: int) -> Config:
    beside = options.plan.with_name(f"{options.plan.stem}.config.toml")
    path = options.config or (beside if beside.is_file() else None)
    if path is not None:
        return load(path)
    config = Config()
    return replace(config, engine=replace(config.engine, num_threads=num_threads))


def _model(name: str, site: "Site", say: "partial[None]") -> str:
    """Fetched here first, where the cluster stands on this machine; elsewhere each host does."""
    from deploy.model_source import resolve_model

    if site.ray_address and (not name or name.startswith("hf:")):
        return name
    told = set[str]()

    def tell(step: str, _: float) -> None:
        if step not in told:
            told.add(step)
            say(step)

    return str(resolve_model(name, tell))


async def _ground(
    deployment: "Deployment", site: "Site", say: "partial[None]", parts: Parts
) -> "Ground":
    """A controller: the one that leads, or a new one with all that it needs."""
    from cli.controller import NoController, controller_of
    from cli.running import NoCluster, read_note
    from deploy.bring_up import Ground, check_room, lay_ground
    from registry.api import RegistryUnavailable

    try:
        address = await controller_of(site.name)
        note = read_note(site.name)
        return Ground(
            registry_url=note.registry_url, controller=address, ray_address=note.ray_address
        )
    except (NoCluster, NoController, RegistryUnavailable):
        # Not there, or not any more: found or made below. Only then all its memory is asked for.
        if not site.ray_address:
            check_room(deployment)

    def step(text: str) -> None:
        say(text)
        parts.begin(text)

    ground = await lay_ground(site, step)
    parts.end_last()
    _write(_note(site, ground, None))
    return ground


async def _deploy(ground: "Ground", deployment: "Deployment", *, dry_run: bool) -> "DeployReply":
    from cli.controller import ask_controller
    from rpc.pb.controller_pb2 import DeployReply, DeployRequest

    request = DeployRequest(deployment_json=deployment.to_json(), dry_run=dry_run)
    reply = await ask_controller(ground.controller, "Deploy", request, timeout_s=FIT_TIMEOUT_S)
    assert isinstance(reply, DeployReply)
    return reply


async def _settled(name: str, say: "partial[None]") -> "ClusterState":
    """Once all is as planned; tells what happens meanwhile."""
    from cli.controller import controller_of
    from cli.watching import Away, states

    told = _Told(say)
    async with aclosing(states(lambda: controller_of(name))) as watched:
        async for state in watched:
            if isinstance(state, Away):
                say(f"waiting for the controller: {state.error}")
                continue
            told.tell(state)
            if state.settled:
                return state
    raise AssertionError("watching has no end of its own")


class _Told:
    """Events, each once; a member that cannot start ends the waiting."""

    def __init__(self, say: "partial[None]") -> None:
        self._say = say
        self._last: float | None = None

    def tell(self, state: "ClusterState") -> None:
        """Those that are new. Those of before this command are not told."""
        last, self._last = self._last, max((e.at_unix_s for e in state.events), default=0.0)
        for event in state.events:
            if last is None or event.at_unix_s <= last:
                continue
            self._say(f"{event.member or state.cluster} {event.text}")
            if event.text.startswith("lost while starting"):
                raise StartFailed(
                    f"{event.member}: {event.text}\nit is tried again; `baton up` may bring another"
                    f" plan, `baton logs {event.member}` has more, `baton down` ends it"
                )


def _note(site: "Site", ground: "Ground", state: "ClusterState | None") -> "ClusterNote":
    from cli.running import ClusterNote
    from rpc.pb.types_pb2 import ROLE_ROUTER

    routers = [m for m in state.members if m.role == ROLE_ROUTER] if state else []
    note = ClusterNote(
        name=site.name,
        routers=tuple(member.address for member in routers),
        http=tuple(member.http_address for member in routers),
        registry_url=ground.registry_url,
        home="" if site.ray_address else str(site.ray_folder),
        ray_address=ground.ray_address,
    )
    _write(note)
    return note


def _write(note: "ClusterNote") -> None:
    from cli.running import write_note

    write_note(note)


async def _first_token(note: "ClusterNote") -> None:
    """From the client's side: the cluster answers."""
    from router.client import AsyncClient

    async with AsyncClient(note.routers) as client:
        async for _ in client.generate(
            "Hello", max_tokens=1, temperature=0.0, timeout_s=FIRST_TOKEN_TIMEOUT_S
        ):
            pass


def _show_changes(reply: "DeployReply", console: "Console") -> None:
    for line in reply.changes:
        console.print(line)
    console.print(f"{len(reply.changes)} changes to begin with; nothing was done")


def _show(
    note: "ClusterNote",
    state: "ClusterState",
    parts: Parts,
    console: "Console",
    *,
    json_output: bool,
) -> None:
    if json_output:
        document = {
            "name": note.name,
            "edition": state.edition,
            "routers": list(note.routers),
            "http": list(note.http),
            "parts_s": parts.by_name,
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    console.print(parts_table(parts))
    console.print(f"cluster {note.name} serves, plan edition {state.edition}")
    console.print(f"  gRPC    {', '.join(note.routers)}")
    console.print(f"  OpenAI  {', '.join(f'http://{address}/v1' for address in note.http)}")
    console.print("ask with: baton generate 'Why is the sky blue?'; baton down ends it")
