"""`baton bench`."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from cli import bench_options as o
from cli.errors import error_console, errors_told
from core.errors import BatonError

if TYPE_CHECKING:
    from bench.load.options import BenchOptions
    from bench.load.session import LoadResult


Outputs = Mapping[str, Path | None]
"""json, csv and html → file; None: not asked for."""


class NotWritten(BatonError):
    """A file for results that cannot be written."""


def bench(  # noqa: PLR0913 - each is an option of the command line
    *,
    url: o.Url = "",
    grpc: o.Grpc = None,
    model: o.Model = "",
    api: o.Api = "completions",
    header: o.Header = None,
    ignore_eos: o.IgnoreEos = True,
    usage_per_chunk: o.UsagePerChunk = True,
    prompt: o.Prompt = "tokens",
    prompt_tokens: o.PromptTokens = "512",
    output_tokens: o.OutputTokens = "128",
    lengths: o.Lengths = None,
    shared_prefix: o.SharedPrefix = "",
    token_ids: o.TokenIds = "1000:30000",
    seed: o.Seed = 0,
    rate: o.Rate = None,
    arrivals: o.Arrivals = "poisson",
    burstiness: o.Burstiness = 1.0,
    trace: o.Trace = None,
    speed: o.Speed = 1.0,
    duration: o.Duration = None,
    num_requests: o.NumRequests = None,
    max_in_flight: o.MaxInFlight = 10_000,
    timeout: o.Timeout = 600.0,
    slo: o.SloOption = "",
    warmup: o.Warmup = None,
    find_goodput: o.FindGoodput = False,
    target: o.TargetOption = 0.9,
    precision: o.Precision = 0.1,
    gpus: o.Gpus = None,
    json_file: o.JsonFile = None,
    csv_file: o.CsvFile = None,
    html_file: o.HtmlFile = None,
) -> None:
    """Measure a server under load: latencies, throughput, and the share of requests in time.

    Requests are sent when they are due, whether or not earlier ones have been answered, and
    latencies count from that moment: a server that falls behind cannot hide it. Works with Baton
    and with every server that speaks OpenAI's completions.

    Five requests a second for a minute, against limits, with a report to look at:

    `baton bench --url http://127.0.0.1:8000/v1 --rate 5 --duration 60 --prompt-tokens 512
    --output-tokens 128 --slo ttft=0.5,tpot=0.05 --html report.html`

    Add `--find-goodput` to learn the highest rate at which 90 % of the requests keep the limits.
    What each figure means: docs/benchmarking.md.
    """
    console = error_console()
    with errors_told(console):
        from bench.load.endpoint import Endpoint
        from bench.load.options import BenchOptions, Load
        from bench.load.parsing import parse_headers

        options = BenchOptions(
            endpoint=Endpoint(
                url=url,
                grpc=tuple(grpc or ()),
                model=model,
                api=api,
                prompt=prompt,
                headers=parse_headers(header or ()),
                ignore_eos=ignore_eos,
                usage_per_chunk=usage_per_chunk,
            ),
            load=Load(
                rate_per_s=rate,
                process=arrivals,
                burstiness=burstiness,
                trace=trace,
                speed=speed,
                duration_s=duration,
                num_requests=num_requests,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                lengths=lengths,
                shared_prefix=shared_prefix,
                vocabulary=token_ids,
                seed=seed,
            ),
            slo=slo,
            warmup_s=warmup,
            timeout_s=timeout,
            max_in_flight=max_in_flight,
            finds_goodput=find_goodput,
            target=target,
            precision=precision,
            num_gpus=gpus,
        )
        outputs = {"json": json_file, "csv": csv_file, "html": html_file}
        _check_folders(outputs)
        _write(_measured(options, console), outputs)


def _measured(options: "BenchOptions", console: Console) -> "LoadResult":
    from bench.load.session import run_bench
    from bench.load.show import show
    from rpc.process import keep_what_is_loaded

    # A pause of ours would be measured as the server's.
    keep_what_is_loaded()
    with progress_line(console) as on_progress:
        result = asyncio.run(run_bench(options, on_progress))
    show(result, Console(highlight=False))
    return result


@contextmanager
def progress_line(console: Console) -> Iterator[Callable[[str], None]]:
    """One line, written over again; where that cannot be, one below the other."""
    if not console.is_terminal:
        yield lambda text: console.print(text, style="dim")
        return
    width = console.width - 1
    yield lambda text: console.print(text[:width].ljust(width), end="\r", style="dim")
    console.print(" " * width, end="\r")


def _check_folders(outputs: Outputs) -> None:
    """Before a run of minutes, rather than after it."""
    for path in filter(None, outputs.values()):
        if not path.absolute().parent.is_dir():
            raise NotWritten(f"{path}: there is no folder {path.parent} to write it to")


def _write(result: "LoadResult", outputs: Outputs) -> None:
    from bench.load.files import write_csv, write_json
    from bench.load.html import write_html

    writers = {"json": write_json, "csv": write_csv, "html": write_html}
    for kind, path in outputs.items():
        try:
            if path is not None:
                writers[kind](result, path)
        except OSError as error:
            raise NotWritten(f"{path}: {error.strerror}; the figures are above") from None
