"""The options of `baton bench`, in the words of its help."""

from pathlib import Path
from typing import Annotated

import typer

WHOM, WHAT, WHEN, JUDGED, OUTPUT = (
    *("Whom to ask", "What to ask", "When to ask"),
    *("How to judge", "Where results go"),
)

Url = Annotated[
    str,
    typer.Option(help="OpenAI-compatible server: http://host:port/v1.", rich_help_panel=WHOM),
]
Grpc = Annotated[
    list[str] | None,
    typer.Option(help="host:port of a Baton router; again for each.", rich_help_panel=WHOM),
]
Model = Annotated[
    str, typer.Option(help="Default: the first that the server names.", rich_help_panel=WHOM)
]
Api = Annotated[str, typer.Option(help="With --url: completions or chat.", rich_help_panel=WHOM)]
Header = Annotated[
    list[str] | None,
    typer.Option(help="NAME:VALUE sent with each HTTP request.", rich_help_panel=WHOM),
]
IgnoreEos = Annotated[
    bool,
    typer.Option(
        help="Answers have exactly the length asked for. Not every server knows this field.",
        rich_help_panel=WHOM,
    ),
]
UsagePerChunk = Annotated[
    bool,
    typer.Option(
        help="Have each chunk say how many tokens it holds. Not every server knows this field.",
        rich_help_panel=WHOM,
    ),
]
Prompt = Annotated[
    str,
    typer.Option(
        help="tokens: random token ids. text: random words, about a token each; for servers that "
        "take no ids. Chats are always text.",
        rich_help_panel=WHAT,
    ),
]
_LENGTH = "N, LOW:HIGH (uniform), or lognormal:MEDIAN:SIGMA[:MAX]."
PromptTokens = Annotated[str, typer.Option(help=_LENGTH, rich_help_panel=WHAT)]
OutputTokens = Annotated[str, typer.Option(help=_LENGTH, rich_help_panel=WHAT)]
Lengths = Annotated[
    Path | None,
    typer.Option(
        help="Draw pairs of lengths from this trace, or CSV with prompt_tokens,output_tokens.",
        rich_help_panel=WHAT,
    ),
]
SharedPrefix = Annotated[
    str,
    typer.Option(
        metavar="N:TOKENS",
        help="Each prompt begins with one of N prefixes of TOKENS tokens, before its own tokens.",
        rich_help_panel=WHAT,
    ),
]
TokenIds = Annotated[
    str,
    typer.Option(
        metavar="LOW:HIGH",
        help="Which token ids prompts are made of; HIGH excluded.",
        rich_help_panel=WHAT,
    ),
]
Seed = Annotated[
    int, typer.Option(help="The same seed gives the same workload.", rich_help_panel=WHAT)
]
Rate = Annotated[
    float | None,
    typer.Option(help="Requests per second, mean; default 1.", rich_help_panel=WHEN),
]
Arrivals = Annotated[str, typer.Option(help="poisson, gamma or constant.", rich_help_panel=WHEN)]
Burstiness = Annotated[
    float,
    typer.Option(
        help="With --arrivals gamma: its shape. 1 is Poisson, less comes in bursts, more evens "
        "out; the coefficient of variation is 1/sqrt of it.",
        rich_help_panel=WHEN,
    ),
]
Trace = Annotated[
    Path | None,
    typer.Option(
        help="Replay moments and lengths: Azure LLM CSV, Mooncake JSONL (.gz too), or CSV with "
        "arrival_s,prompt_tokens,output_tokens.",
        rich_help_panel=WHEN,
    ),
]
Speed = Annotated[
    float, typer.Option(help="Play the trace so many times faster.", rich_help_panel=WHEN)
]
Duration = Annotated[
    float | None,
    typer.Option(help="Seconds of arrivals; default 30, a trace: all.", rich_help_panel=WHEN),
]
NumRequests = Annotated[
    int | None, typer.Option(help="End after so many requests.", rich_help_panel=WHEN)
]
MaxInFlight = Annotated[
    int,
    typer.Option(
        help="A guard: a request due while so many are in flight fails; it never waits.",
        rich_help_panel=WHEN,
    ),
]
Timeout = Annotated[
    float, typer.Option(help="Seconds until an answer has to be whole.", rich_help_panel=WHEN)
]
SloOption = Annotated[
    str,
    typer.Option(
        "--slo",
        help="Limits in seconds on ttft, tpot and e2e, like ttft=0.5,tpot=0.05; attainment is the "
        "share of requests that keep all of them.",
        rich_help_panel=JUDGED,
    ),
]
Warmup = Annotated[
    float | None,
    typer.Option(
        help="Seconds at the start that do not count; default 0, with --find-goodput a quarter "
        "of the duration.",
        rich_help_panel=JUDGED,
    ),
]
FindGoodput = Annotated[
    bool,
    typer.Option(
        "--find-goodput",
        help="Look for the highest rate that attains the target, by bisection from --rate on; "
        "--duration is that of each rate tried.",
        rich_help_panel=JUDGED,
    ),
]
TargetOption = Annotated[
    float, typer.Option(help="Attainment, 0 to 1, that goodput needs.", rich_help_panel=JUDGED)
]
Precision = Annotated[
    float,
    typer.Option(help="How far apart goodput's bounds may be, 0 to 1.", rich_help_panel=JUDGED),
]
Gpus = Annotated[
    int | None,
    typer.Option(min=1, help="Their number: goodput is also told per GPU.", rich_help_panel=JUDGED),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="All figures.", rich_help_panel=OUTPUT)
]
CsvFile = Annotated[
    Path | None, typer.Option("--csv", help="A row for each request.", rich_help_panel=OUTPUT)
]
HtmlFile = Annotated[
    Path | None,
    typer.Option("--html", help="A report with plots, in one file.", rich_help_panel=OUTPUT),
]
