"""The `baton` command."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Serve large language models on separate prefill and decode instances.\n\n"
    "Start with `baton fetch`, then `baton serve`; ask with `baton generate`.",
)

AddressOption = Annotated[
    str | None,
    typer.Option(help="host:port of a router; default: the cluster last served by this user."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@app.command()
def fetch() -> None:
    """Fetch the default model (SmolLM2-135M-Instruct, 93 MB) and convert it, once."""
    from cli.fetch import fetch_model

    fetch_model()


@app.command()
def serve(  # noqa: PLR0913 - each is an option of the command line
    model: Annotated[
        Path | None, typer.Option(help="Model folder; default: the plan's, else the default model.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="plan.toml; default: one prefill, one decode, one router.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings as TOML: see below.")] = None,
    registry: Annotated[
        str | None, typer.Option(help="redis:// or rediss:// URL; default: an embedded Valkey.")
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the first router; 0 takes any free port.")
    ] = 0,
    name: Annotated[str, typer.Option(help="Cluster name, the prefix of its keys.")] = "baton",
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "WARNING",
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
            registry=registry,
            port=port,
            name=name,
            log_level=log_level,
        )
    )


@app.command()
def generate(  # noqa: PLR0913 - each is an option of the command line
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads standard input.")],
    address: AddressOption = None,
    max_tokens: Annotated[int, typer.Option(help="Output tokens at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampled output repeatable.")] = None,
    *,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Ask a running cluster, and stream the answer."""
    from cli.generate import Question, ask

    ask(
        Question(
            prompt=prompt,
            address=address,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            raw=raw,
            json_output=json_output,
        )
    )


@app.command()
def status(address: AddressOption = None, *, json_output: JsonOption = False) -> None:
    """Show the instances of a running cluster, their load and their books."""
    from cli.status import show_status

    show_status(address, json_output=json_output)
