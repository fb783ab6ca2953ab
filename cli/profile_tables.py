"""A profile, and what two of them agree on, as tables for people."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from core.profile import ALONE, Condition, Profile, StepShape
from core.profile_compare import MIN_AGREEING, Agreement

MAX_SHOWN = 8
"""Of the steps that differ; the file has them all."""
ROUGH_INTERVAL = 0.2
"""A quiet machine repeats within a few percent."""


def show_profile(profile: Profile, console: Console) -> None:
    """Models, errors, L_m, copies; loaded against alone."""
    subject = profile.subject
    console.print(
        f"{subject.model}, {subject.dtype} on {subject.machine.cpu} ({subject.device},"
        f" {subject.machine.num_threads} of {subject.machine.num_cores} cores)"
    )
    for layout in profile.layouts:
        console.print(_model_table(f"layout {layout.tp}x{layout.pp}", layout.conditions))
        console.print(_copy_table(layout.conditions))
        l_m = layout.saturation
        console.print(
            f"L_m: {l_m.l_m_tokens} prompt tokens per step saturate prefill"
            f" ({l_m.low_tokens} to {l_m.high_tokens} over the rounds)"
        )
        for condition in layout.conditions:
            if condition.name != ALONE:
                ratios = loaded_ratios(layout.condition(ALONE), condition)
                words = ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in ratios)
                console.print(f"{condition.name} / alone: {words} (median over common steps)")
        if max(condition.interval for condition in layout.conditions) > ROUGH_INTERVAL:
            console.print(
                "The rounds differ widely: other programs ran. Measure again without them."
            )


def show_agreement(agreement: Agreement, console: Console) -> None:
    """The share that agrees, and what differs most."""
    table = Table(title="steps that differ most", box=box.SIMPLE_HEAD)
    for column in ("condition", "step", "ms", "other ms", "differ by", "interval"):
        table.add_column(column, justify="left" if column in ("condition", "step") else "right")
    for difference in agreement.differences[:MAX_SHOWN]:
        table.add_row(
            difference.condition,
            step_name(difference.shape),
            *(f"{time_s * 1e3:.1f}" for time_s in difference.times_s),
            f"{difference.relative:.1%}",
            f"{difference.interval:.1%}",
        )
    console.print(table)
    first, second = agreement.l_m_tokens
    console.print(f"L_m: {first} and {second}: {'agree' if agreement.l_m_agrees else 'DIFFER'}")
    console.print(
        f"{agreement.num_agreeing} of {len(agreement.differences)} steps agree within the stated"
        f" interval: {agreement.share:.0%}, at least {MIN_AGREEING:.0%} are needed"
    )


def step_name(shape: StepShape) -> str:
    """As few words as tell it from others."""
    if shape.kind == "decode":
        return f"decode {shape.batch} x {shape.num_cached_tokens + 1} context"
    after = f" after {shape.num_cached_tokens}" if shape.num_cached_tokens else ""
    return f"prefill {shape.batch} x {shape.num_tokens}{after}"


def loaded_ratios(alone: Condition, loaded: Condition) -> Iterator[tuple[str, float]]:
    """Per kind, the median of loaded time over time alone."""
    times_s = {point.shape: point.time_s for point in alone.points}
    for kind in ("prefill", "decode"):
        ratios = sorted(
            point.time_s / times_s[point.shape]
            for point in loaded.points
            if point.shape.kind == kind and point.shape in times_s
        )
        if ratios:
            yield kind, ratios[len(ratios) // 2]


def _model_table(title: str, conditions: Sequence[Condition]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("milliseconds")
    for condition in conditions:
        table.add_column(condition.name, justify="right")
    columns = [dict(_model_cells(condition)) for condition in conditions]
    names = dict.fromkeys(name for column in columns for name in column)
    for name in names:
        table.add_row(name, *(column.get(name, "") for column in columns))
    return table


def _model_cells(condition: Condition) -> Iterator[tuple[str, str]]:
    prefill, decode = condition.prefill, condition.decode
    yield "prefill, per step", f"{prefill.base_s * 1e3:.2f}"
    yield "  per token", f"{prefill.per_token_s * 1e3:.3f}"
    yield "  per 1000 pairs attended", f"{prefill.per_pair_s * 1e6:.3f}"
    for batch, time_s in zip(decode.batches, decode.batch_s, strict=True):
        yield f"decode, batch of {batch}", f"{time_s * 1e3:.2f}"
    knots = zip(decode.num_context_tokens, decode.context_s, strict=True)
    for tokens, time_s in list(knots)[1:]:
        yield f"  and {tokens} tokens of context", f"+ {time_s * 1e3:.2f}"
    yield "steps measured, rounds", f"{len(condition.points)}, {condition.num_rounds}"
    for name, error in (("prefill", condition.prefill_error), ("decode", condition.decode_error)):
        yield f"held-out error, {name}", f"{error.median:.1%} (at most {error.max:.1%})"
    yield "held-out error, median", f"{condition.error.median:.1%}"
    yield "interval of a second run", f"± {condition.interval:.1%}"


def _copy_table(conditions: Sequence[Condition]) -> Table:
    table = Table(title="KV copies (handoff, swap)", box=box.SIMPLE_HEAD)
    table.add_column("copy")
    for condition in conditions:
        table.add_column(condition.name, justify="right")
    columns = [
        {(c.kind, c.num_bytes): f"{c.bytes_per_s / 1e9:.2f} GB/s" for c in condition.copies}
        for condition in conditions
    ]
    for kind, num_bytes in columns[0] if columns else ():
        cells = (column.get((kind, num_bytes), "") for column in columns)
        table.add_row(f"{kind}, {num_bytes / 1e6:.1f} MB", *cells)
    return table
