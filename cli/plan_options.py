"""The options of `baton plan` and `baton simulate`, in the words of their help."""

from pathlib import Path
from typing import Annotated

import typer

WHAT, GPUS, WORK, TIMES, RULES, SEARCH, OUTPUT = (
    *("The question", "The GPUs", "The work", "How long steps take"),
    *("How instances work", "How it is searched", "Where results go"),
)
CLUSTER = "The cluster"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A name (llama-3.1-70b, qwen2.5-32b, ...; an unknown one lists them), or a "
        "config.json, or a folder that holds one.",
    ),
]
SloOption = Annotated[
    str,
    typer.Option(
        "--slo",
        help="Limits in seconds on ttft, tpot and e2e, like ttft=0.5,tpot=0.05.",
        rich_help_panel=WHAT,
    ),
]
Target = Annotated[
    float,
    typer.Option(
        help="Share of the requests that must keep all limits together, 0 to 1.",
        rich_help_panel=WHAT,
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        help="Requests per second to be served; default: as many as the GPUs can.",
        rich_help_panel=WHAT,
    ),
]
GoalOption = Annotated[
    str,
    typer.Option(
        help="What is best: gpus (fewest at --rate), goodput (most per GPU), cost or power.",
        rich_help_panel=WHAT,
    ),
]
SpareOption = Annotated[
    str,
    typer.Option(
        help="Still attain with any one of these lost: none, instance or host.",
        rich_help_panel=WHAT,
    ),
]

Gpu = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=N]",
        help="Kind of GPU, like h100-sxm, and how many of it at most; again for each kind.",
        rich_help_panel=GPUS,
    ),
]
NumGpus = Annotated[
    int | None, typer.Option("--gpus", help="At most, of all kinds.", rich_help_panel=GPUS)
]
MaxUsdPerHour = Annotated[
    float | None,
    typer.Option("--max-usd-per-hour", help="Price of all GPUs, at most.", rich_help_panel=GPUS),
]
MaxWatts = Annotated[
    float | None,
    typer.Option(
        "--max-watts",
        help="Installed power of all GPUs with their share of the hosts, at most.",
        rich_help_panel=GPUS,
    ),
]
Owned = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=N",
        help="GPUs that are there already: so many, and they cost their power alone.",
        rich_help_panel=GPUS,
    ),
]
Inventory = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="`baton inventory --out` of a host, in place of --gpu; again for each host. Its links "
        "and memory count as found.",
        rich_help_panel=GPUS,
    ),
]
GpusPerHost = Annotated[
    int | None, typer.Option(help="Default: as the catalogue has it.", rich_help_panel=GPUS)
]
HardwareFile = Annotated[
    list[Path] | None,
    typer.Option(
        "--hardware",
        help="TOML as policy/hardware.toml: your prices, links, other GPUs.",
        rich_help_panel=GPUS,
    ),
]
NetworkGbps = Annotated[
    float | None,
    typer.Option(
        help="Of each host and direction; default: as the catalogue has it.", rich_help_panel=GPUS
    ),
]
MaxInstanceGpus = Annotated[
    int | None,
    typer.Option(
        help="Of one instance; default: a host's, more only where the weights need more.",
        rich_help_panel=GPUS,
    ),
]

WorkloadOption = Annotated[
    str,
    typer.Option(
        "--workload",
        help="azure-conv, azure-code, sharegpt, humaneval, or a file: a trace (Azure CSV, "
        "Mooncake JSONL, our router's log, `baton bench --csv`) or CSV with "
        "prompt_tokens,output_tokens; or a .toml with several classes.",
        rich_help_panel=WORK,
    ),
]
_LENGTH = "N, LOW:HIGH (uniform), or lognormal:MEDIAN:SIGMA[:MAX]."
PromptTokens = Annotated[str, typer.Option(help=f"Of no workload: {_LENGTH}", rich_help_panel=WORK)]
OutputTokens = Annotated[str, typer.Option(help="As --prompt-tokens.", rich_help_panel=WORK)]
ArrivalsOption = Annotated[
    str,
    typer.Option(
        "--arrivals",
        help="poisson, constant, gamma:SHAPE, SECONDS:RATE,SECONDS:RATE,…[,hold], or trace: as "
        "recorded, and its requests in their order.",
        rich_help_panel=WORK,
    ),
]
CachedShare = Annotated[
    float,
    typer.Option(
        "--cached",
        help="Share of each prompt that every instance is taken to hold already, 0 to 1.",
        rich_help_panel=WORK,
    ),
]
Seed = Annotated[
    int,
    typer.Option(min=0, help="The same seed gives the same requests.", rich_help_panel=WORK),
]

LatencyOption = Annotated[
    str | None,
    typer.Option(
        help="roofline (data sheets; the default), distserve, vllm or splitwise (published "
        "measurements), measured (needs --profile).",
        rich_help_panel=TIMES,
    ),
]
ProfileFile = Annotated[
    Path | None,
    typer.Option(help="profile.json of `baton profile`: times of your own.", rich_help_panel=TIMES),
]
NumBlocks = Annotated[
    int,
    typer.Option(help="With --profile: KV blocks of one instance.", rich_help_panel=TIMES),
]
WeightDtype = Annotated[
    str | None,
    typer.Option(help="Default: as config.json says.", rich_help_panel=TIMES),
]
KvDtype = Annotated[
    str | None, typer.Option(help="Default: that of activations.", rich_help_panel=TIMES)
]

Policy = Annotated[
    str, typer.Option(help="Placement: docs/policies.md names them.", rich_help_panel=RULES)
]
MaxBatch = Annotated[int, typer.Option(help="Answers in one step.", rich_help_panel=RULES)]
StepTokens = Annotated[
    int | None,
    typer.Option(
        help="Prompt tokens in one step; default 2048, with --profile its L_m.",
        rich_help_panel=RULES,
    ),
]
ChunkTokens = Annotated[
    int,
    typer.Option(help="Tokens in one step of a chunked colocated instance.", rich_help_panel=RULES),
]
CacheShare = Annotated[
    float,
    typer.Option(
        help="Of KV room, kept for prompts that begin alike (traces with hash ids).",
        rich_help_panel=RULES,
    ),
]
LayerwiseFrom = Annotated[
    int | None,
    typer.Option(
        help="KV of prompts of so many tokens and more is sent while they are read.",
        rich_help_panel=RULES,
    ),
]

AffinityOption = Annotated[
    str | None,
    typer.Option(
        help="high: DistServe's Algorithm 1; low: its Algorithm 2, KV stays in hosts. Default both",
        rich_help_panel=SEARCH,
    ),
]
Quick = Annotated[
    bool,
    typer.Option("--quick", help="Fewer, shorter runs: wider intervals.", rich_help_panel=SEARCH),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Default: one for each core.", rich_help_panel=SEARCH),
]
SensitivityOption = Annotated[
    bool,
    typer.Option(
        "--sensitivity",
        help="What if: rate ±20 %, answers twice as long, a host lost, links four times slower.",
        rich_help_panel=SEARCH,
    ),
]

Out = Annotated[
    Path | None,
    typer.Option(
        metavar="PLAN.TOML",
        help="Write the plan; and beside it settings, a load, and the forecast to check.",
        rich_help_panel=OUTPUT,
    ),
]
PicturesDir = Annotated[
    Path | None,
    typer.Option("--pictures", help="Folder for pictures (SVG, PNG).", rich_help_panel=OUTPUT),
]
Json = Annotated[
    bool, typer.Option("--json", help="Machine-readable output.", rich_help_panel=OUTPUT)
]
Explain = Annotated[
    bool,
    typer.Option(
        "--explain", help="Why, what was pruned, and what it rests on.", rich_help_panel=OUTPUT
    ),
]

PlanFile = Annotated[
    Path | None, typer.Option("--plan", help="A plan.toml.", rich_help_panel=CLUSTER)
]
_POOL = "TPxPP:INSTANCES[@GPU], like 2x1:3; again for each."
Prefill = Annotated[
    list[str] | None, typer.Option(metavar="POOL", help=_POOL, rich_help_panel=CLUSTER)
]
Decode = Annotated[
    list[str] | None, typer.Option(metavar="POOL", help=_POOL, rich_help_panel=CLUSTER)
]
Mixed = Annotated[
    list[str] | None,
    typer.Option(metavar="POOL", help=f"Both phases. {_POOL}", rich_help_panel=CLUSTER),
]
SchedulingOption = Annotated[
    str,
    typer.Option(
        "--scheduling",
        help="Of mixed instances: exclusive (prompts first), joined (whole prompts and answers in "
        "one step) or chunked.",
        rich_help_panel=CLUSTER,
    ),
]
Lose = Annotated[
    list[str] | None,
    typer.Option(
        metavar="INSTANCE@SECONDS[-BACK]",
        help="An instance is lost then, and back again later; counted from 0, prefill first.",
        rich_help_panel=CLUSTER,
    ),
]
SimulatedRate = Annotated[
    float | None,
    typer.Option(help="Requests per second; default: the trace's own.", rich_help_panel=WORK),
]
NumRequests = Annotated[
    int, typer.Option(min=1, help="Of one run.", rich_help_panel=WORK, show_default=True)
]
NumRuns = Annotated[
    int, typer.Option("--runs", min=1, help="With seeds one after the other.", rich_help_panel=WORK)
]
