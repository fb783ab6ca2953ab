"""Where each answer's time went, as a table for people."""

from collections.abc import Sequence

from rich.table import Table

from core.slo import FirstGapParts, TtftParts, first_gap_parts, ttft_parts
from router.events import Finished


def timing_table(answers: Sequence[Finished]) -> Table:
    """One column per answer; parts of a sum are indented below it."""
    table = Table(title="where the time went (milliseconds)")
    table.add_column("request")
    for number in range(len(answers)):
        table.add_column(str(number + 1), justify="right")
    columns = [_cells(answer) for answer in answers]
    for name in columns[0] if columns else ():
        table.add_row(name, *(column[name] for column in columns))
    return table


def _cells(answer: Finished) -> dict[str, str]:
    timing, handoff = answer.timing, answer.timing.handoff
    ttft = ttft_parts(timing.ttft_s, timing.router_queue_s, timing.prefill)
    gap = first_gap_parts(timing.first_gap_s, handoff)
    return {
        "TTFT": _ms(timing.ttft_s),
        **_ttft_cells(ttft),
        "first gap": _ms(timing.first_gap_s),
        **_gap_cells(gap),
        "TPOT": _ms(timing.tpot_s),
        "output tokens": str(answer.num_output_tokens),
        "KV tokens moved": str(handoff.num_kv_tokens),
        "KV bytes moved": f"{handoff.num_kv_bytes:,}",
        "carrier": handoff.carrier,
    }


def _ttft_cells(parts: TtftParts) -> dict[str, str]:
    return {
        "  router queue": _ms(parts.router_queue_s),
        "  prefill queue": _ms(parts.prefill_queue_s),
        "  prefill compute": _ms(parts.prefill_compute_s),
        "  return (network)": _ms(parts.network_s),
    }


def _gap_cells(parts: FirstGapParts) -> dict[str, str]:
    return {
        "  exposed transfer": _ms(parts.exposed_transfer_s),
        "  reserve wait": _ms(parts.reserve_wait_s),
        "  decode queue": _ms(parts.decode_queue_s),
        "  first decode step": _ms(parts.first_step_s),
        "  network": _ms(parts.network_s),
    }


def _ms(duration_s: float) -> str:
    return f"{duration_s * 1e3:.1f}"
