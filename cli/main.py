"""The `baton` command."""

from pathlib import Path
from typing import Annotated

import typer

from cli.bench import bench
from cli.down import down
from cli.drain import drain
from cli.inventory import inventory
from cli.logs import logs
from cli.plan import plan
from cli.replan import replan
from cli.simulate import simulate
from cli.state import state
from cli.status import status
from cli.top import top
from cli.up import up
from core.limits import MAX_LOGPROBS, MAX_PRIORITY
from core.logs import LogFormat

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Serve large language models on separate prefill and decode instances.\n\n"
    "Start with `baton fetch`, then `baton serve`; ask with `baton generate`.\n\n"
    "`baton up plan.toml` brings up a cluster that stays, and changes it later.",
)

AddressOption = Annotated[
    str | None,
    typer.Option(help="host:port of a router; default: the cluster last served by this user."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@app.command()
def fetch(
    model: Annotated[
        str, typer.Argument(help="A .gguf file or hf:ORG/NAME@COMMIT; default: the default model.")
    ] = "",
) -> None:
    """Fetch a model and convert it, once; by default SmolLM2-135M-Instruct (93 MB)."""
    from cli.fetch import fetch_model

    fetch_model(model)


@app.command()
def serve(  # noqa: PLR0913 - each is an option of the command line
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder of safetensors, .gguf file or hf:ORG/NAME@COMMIT; default: the plan's, "
            "else the default model."
        ),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="plan.toml; default: one prefill, one decode, one router.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings as TOML: see below.")] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="Of `baton profile`: prefill steps as large as its L_m, unless --config says."
        ),
    ] = None,
    registry: Annotated[
        str | None, typer.Option(help="redis:// or rediss:// URL; default: an embedded Valkey.")
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="gRPC, first router; 0 takes any free port.")
    ] = 0,
    http_port: Annotated[
        int, typer.Option(min=0, max=65535, help="OpenAI's API, first router; 0: any free port.")
    ] = 0,
    name: Annotated[str, typer.Option(help="Cluster name, the prefix of its keys.")] = "baton",
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "WARNING",
    log_format: Annotated[
        LogFormat, typer.Option(help="Lines for people, or an object a line for machines.")
    ] = LogFormat.TEXT,
) -> None:
    """Run a cluster on this machine until Ctrl-C, which drains it.

    Settings in --config are tables [engine] (dtype, device, block_size, num_blocks, num_threads),
    [worker] (prefill_step_tokens, max_running, max_queued, ...), [handoff] (lease_ttl_s, ...) and
    [router] (max_running, max_queued, default_timeout_s, max_attempts, policy, ...).
    """
    from cli.serve import ServeOptions, serve_cluster

    serve_cluster(
        ServeOptions(
            model=model,
            plan=plan,
            config=config,
            profile=profile,
            registry=registry,
            port=port,
            http_port=http_port,
            name=name,
            log_level=log_level,
            log_format=log_format,
        )
    )


@app.command()
def generate(  # noqa: PLR0913 - each is an option of the command line
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads standard input.")],
    address: AddressOption = None,
    max_tokens: Annotated[int, typer.Option(help="Output tokens at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampled output repeatable.")] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MAX_LOGPROBS,
            help="With --json: log-probabilities of each token and of so many likeliest.",
        ),
    ] = None,
    json_schema: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="File; the answer must match it."),
    ] = None,
    regex: Annotated[str | None, typer.Option(help="The answer must match it.")] = None,
    tenant: Annotated[str, typer.Option(help="On whose behalf.")] = "",
    priority: Annotated[
        int, typer.Option(min=-MAX_PRIORITY, max=MAX_PRIORITY, help="Higher goes first.")
    ] = 0,
    *,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Ask a running cluster, and stream the answer."""
    if logprobs is not None and not json_output:
        raise typer.BadParameter("needs --json", param_hint="--logprobs")
    if json_schema is not None and regex is not None:
        raise typer.BadParameter("not together with --json-schema", param_hint="--regex")
    from cli.generate import Question, ask

    ask(
        Question(
            prompt=prompt,
            address=address,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            logprobs=logprobs,
            json_schema=json_schema,
            regex=regex,
            tenant=tenant,
            priority=priority,
            raw=raw,
            json_output=json_output,
        )
    )


@app.command()
def batch(
    source: Annotated[Path, typer.Argument(help="Requests: OpenAI's batch format, JSON lines.")],
    target: Annotated[Path, typer.Argument(help="Answers; one that is there is gone on with.")],
    address: Annotated[
        str | None,
        typer.Option(help="host:port of an OpenAI API; default: the cluster last served here."),
    ] = None,
    max_in_flight: Annotated[int, typer.Option(min=1, max=4096, help="Requests at once.")] = 64,
    priority: Annotated[
        int,
        typer.Option(min=-10, max=10, help="Of lines that name none; 10 goes after all others."),
    ] = 10,
    json_output: JsonOption = False,
) -> None:
    """Answer a file of requests; interrupted, the same command goes on where it stopped.

    Each line is {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}.
    Requests that begin alike are brought together, so that what they share is computed once.
    """
    from cli.batch import BatchJob, answer_batch

    answer_batch(
        BatchJob(
            source=source,
            target=target,
            address=address,
            max_in_flight=max_in_flight,
            priority=priority,
            json_output=json_output,
        )
    )


@app.command()
def explain(
    request_id: Annotated[
        str, typer.Argument(help="As given, or as x-request-id of the answer or error said.")
    ],
    address: AddressOption = None,
    *,
    json_output: JsonOption = False,
) -> None:
    """Show where one request's time went, where it ran, and why.

    Each router remembers its last 1,024 requests, and of those that failed, were placed more than
    once or were slow the last 256.
    """
    from cli.explain import explain_request

    explain_request(request_id, address, json_output=json_output)


@app.command()
def apply(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="settings.toml: docs/settings.md.")
    ] = None,
    rollback: Annotated[
        int | None,
        typer.Option(
            min=-1, help="Put the text of this version again; -1: of the one before the newest."
        ),
    ] = None,
    address: AddressOption = None,
    *,
    history: Annotated[
        bool, typer.Option("--history", help="Show who put what, and when.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, and show the difference; put nothing.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Give a running cluster new settings: tenants, limits, placement, log level.

    Every router takes them over within seconds; the last 32 editions are kept.
    """
    from cli.apply import ApplyOptions, apply_settings

    apply_settings(
        ApplyOptions(
            file=file,
            rollback=rollback,
            history=history,
            dry_run=dry_run,
            address=address,
            json_output=json_output,
        )
    )


@app.command()
def profile(  # noqa: PLR0913 - each is an option of the command line
    model: Annotated[Path | None, typer.Option(help="Model folder; default: the default.")] = None,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("profile.json"),
    budget_s: Annotated[
        float | None, typer.Option(min=1.0, help="Seconds at most; default 300, with --quick 54.")
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(help="Measure nothing: say whether --out agrees with this profile."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings as TOML; [engine] counts.")] = None,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer steps, fewer rounds.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Measure how fast a model is on this machine, and fit the latency model to it.

    An interrupted run, or one whose budget was too short, goes on when it is run again.
    """
    from cli.profile import ProfileOptions, run_profile

    run_profile(
        ProfileOptions(
            model=model,
            out=out,
            budget_s=budget_s,
            quick=quick,
            json_output=json_output,
            compare=compare,
            config=config,
        )
    )


for command in (up, down, status, top, drain, logs, replan, inventory, bench, plan, simulate):
    app.command()(command)
app.add_typer(state, name="state")
