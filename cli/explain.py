"""`baton explain`."""

import asyncio
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from cli.errors import error_console, errors_told
from cli.running import routers_now
from core.errors import UnknownRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rpc.pb.cluster_pb2 import (
        ExplainedAttempt,
        ExplainedChoice,
        ExplainedLoss,
        ExplainedSpan,
        ExplainReply,
    )

BAR_CHARS = 36
"""With a name and a duration beside it, a terminal of 80 holds a span's line."""
_INNER = "router_queue"
_COLOURS = {
    "ttft": "green",
    "first_gap": "cyan",
    "rest": "blue",
    "no_token": "red",
    _INNER: "bright_black",
}


def explain_request(request_id: str, address: str | None, *, json_output: bool) -> None:
    """A picture, or JSON; errors are one line and exit status 1 or 4."""
    console = error_console()
    with errors_told(console):
        reply = asyncio.run(_explain(request_id, address))
        if json_output:
            from cli.asking import as_json

            sys.stdout.write(as_json(reply) + "\n")
        else:
            Console(highlight=False, markup=False).print(picture(reply))


async def _explain(request_id: str, address: str | None) -> "ExplainReply":
    """Of whichever router took it."""
    from cli.asking import ask_cluster
    from rpc.pb.cluster_pb2 import ExplainRequest

    request = ExplainRequest(request_id=request_id)
    unknown = UnknownRequest("no router")
    for router in await routers_now(address):
        try:
            reply: ExplainReply = await ask_cluster(router, "Explain", request)
            return reply
        except UnknownRequest as error:
            unknown = error
    raise unknown


def picture(reply: "ExplainReply") -> Group:
    """All of it, for a terminal."""
    parts = [Text(reply.verdict, style="bold"), Text(_headline(reply)), Text("")]
    if not reply.choices:
        return Group(*parts, _waterfall(reply.spans))
    return Group(*parts, *(part for choice in reply.choices for part in _choice(choice)))


def _headline(reply: "ExplainReply") -> str:
    arrived = datetime.fromtimestamp(reply.arrived_at_unix_s, UTC)
    facts = (
        f"{reply.request_id}: {reply.reason}",
        f"{arrived.isoformat(sep=' ', timespec='milliseconds')}, {seconds(reply.duration_s)}",
        f"{reply.num_prompt_tokens} prompt and {reply.num_output_tokens} output tokens",
        f"model {reply.model or 'unknown'}",
        f"tenant {reply.tenant or 'none'}",
        f"{reply.router_id} over {reply.door}",
        f"{reply.num_running_before} ran and {reply.num_queued_before} waited when it came",
    )
    return "\n".join((facts[0], ", ".join(facts[1:3]), ", ".join(facts[3:6]), facts[6]))


def _choice(choice: "ExplainedChoice") -> "Iterator[Table | Text]":
    yield Text(
        f"choice {choice.index}: {choice.reason}, {choice.num_output_tokens} tokens;"
        f" TTFT {seconds(choice.ttft_s)}, first gap {seconds(choice.first_gap_s)},"
        f" TPOT {seconds(choice.tpot_s)}, end {seconds(choice.e2e_s)}"
    )
    if moved := ", ".join(f"{n:,} bytes by {by}" for by, n in sorted(choice.num_kv_bytes.items())):
        yield Text(f"KV handed over: {moved}")
    if choice.num_hit_tokens or choice.num_fetched_tokens:
        yield Text(
            f"prefix: {choice.num_hit_tokens} tokens cached,"
            f" {choice.num_fetched_tokens} fetched from elsewhere"
        )
    yield _waterfall(choice.spans)
    yield _attempts(choice)


def _waterfall(spans: "Sequence[ExplainedSpan]") -> Table:
    """A line a span: when it began, how long it took, and where that lies in the whole."""
    end_s = max((span.start_s + span.duration_s for span in spans), default=0.0)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("span", no_wrap=True)
    table.add_column("starts", justify="right")
    table.add_column("takes", justify="right")
    table.add_column("", no_wrap=True)
    for span in spans:
        if not span.duration_s:
            continue
        indent = "  " if span.part_of == _INNER else ""
        bar = Text(_bar(span, end_s), style=_COLOURS.get(span.part_of, ""))
        name = indent + span.name.replace("_", " ")
        table.add_row(name, seconds(span.start_s), seconds(span.duration_s), bar)
    return table


def _bar(span: "ExplainedSpan", end_s: float) -> str:
    scale = BAR_CHARS / end_s if end_s else 0.0
    first = min(BAR_CHARS - 1, int(span.start_s * scale))
    # However short, it is seen.
    length = max(1, min(BAR_CHARS - first, round(span.duration_s * scale)))
    return " " * first + "█" * length


def _attempts(choice: "ExplainedChoice") -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in ("attempt", "placed", "prefill", "decode", "why there, and why it ended"):
        table.add_column(column)
    if (num_before := choice.num_attempts - len(choice.attempts)) > 0:
        table.add_row(f"{num_before} earlier", "", "", "", "")
    for attempt in choice.attempts:
        table.add_row(
            str(attempt.number),
            seconds(attempt.start_s),
            attempt.prefill_instance_id or "-",
            attempt.decode_instance_id or "-",
            "\n".join(_why(attempt)),
        )
    return table


def _why(attempt: "ExplainedAttempt") -> "Iterator[str]":
    """Its reasons, a line for each instance; then what went wrong."""
    by_instance: dict[str, list[str]] = {}
    for reason in attempt.reasons:
        who, _, why = reason.partition(": ")
        by_instance.setdefault(who, []).append(why)
    yield from (f"{who}: {', '.join(whys)}" for who, whys in by_instance.items())
    yield from map(_loss, attempt.losses)


def _loss(loss: "ExplainedLoss") -> str:
    return f"lost at {seconds(loss.at_s)}: {loss.reason}: {loss.message}"


def seconds(duration_s: float) -> str:
    """For people: 12.3 ms, 1.23 s."""
    return f"{duration_s * 1000:.3g} ms" if duration_s < 1 else f"{duration_s:.3g} s"
