"""What runs of a given cluster come to, as a table for people."""

from collections.abc import Iterator

from rich.table import Table

from planner.report.measures import Measures
from planner.report.texts import percent, quantile_texts, share, usd, watts


def measures_table(found: Measures, title: str) -> Table:
    """A row for each figure."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, text in _rows(found):
        table.add_row(name, text)
    return table


def _rows(found: Measures) -> Iterator[tuple[str, str]]:
    judged = found.judgement
    yield "arrivals", f"{judged.rate_per_s:.4g} requests/s"
    for each in judged.asked:
        name = f"attainment, class {each.criterion.name} (95 %)"
        yield name, f"{share(each.share)}, target {100 * each.criterion.target:g} %"
    for name in ("ttft", "tpot"):
        if (kept := judged.watched(name)) is not None:
            yield f"{name.upper()} limit kept", share(kept)
    yield "backlog", "steady" if judged.is_steady else "grows"
    yield "TTFT P50 / P90 / P99", quantile_texts(found.ttft_s)
    yield "TPOT P50 / P90 / P99", quantile_texts(found.tpot_s)
    yield "first gap P50 / P90 / P99", quantile_texts(found.first_gap_s)
    yield "end to end P50 / P90 / P99", quantile_texts(found.e2e_s)
    yield "output tokens/s", f"{found.output_tokens_per_s:,.1f}"
    yield from _spent(found)
    yield from _counted(found)


def _spent(found: Measures) -> Iterator[tuple[str, str]]:
    yield "USD per hour", usd(found.usd_per_hour)
    yield "USD per million output tokens", usd(found.usd_per_million_output_tokens)
    yield "watts, average / installed", watts(found.average_w, found.provisioned_w)
    yield "busiest host's network", percent(found.link_load)
    for role, busy in found.busy.items():
        text = f"{100 * busy.prefill:.0f} % with prompts, {100 * busy.decode:.0f} % answers alone"
        yield f"{role.value} instances busy", text


def _counted(found: Measures) -> Iterator[tuple[str, str]]:
    counters = found.counters
    yield "requests, refused", f"{found.num_requests:,}, {found.num_refused:,}"
    yield "transfers, preemptions", f"{counters.num_transfers:,}, {counters.num_preemptions:,}"
    steps = counters.num_leapt_steps + counters.num_single_steps
    yield "steps", f"{steps:,}; {counters.num_single_steps:,} singly, {counters.num_leaps:,} leaps"
