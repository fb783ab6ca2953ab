"""Splitwise's published measurements: rows, those that cannot be right, and missing power."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

from policy.published_data import read_csv

TABLE = "splitwise_perf_model.csv"
MS = 1e-3


class Row(NamedTuple):
    """One run of equal requests; its times are means over its tokens."""

    model: str
    hardware: str
    tp: int
    num_prompt_tokens: int
    """Of each request."""
    batch: int
    num_output_tokens: int
    prefill_s: float
    """Of the whole batch."""
    decode_s: float
    """Of one step."""
    average_power: float | None
    """As a share of the GPU's thermal design power, 0 to about 1; None: missing."""

    @property
    def key(self) -> tuple[str, str, int]:
        """Rows of one model, hardware and tensor parallelism belong together."""
        return self.model, self.hardware, self.tp

    @property
    def step_tokens(self) -> int:
        """Prompt tokens of the prefill step."""
        return self.batch * self.num_prompt_tokens

    @property
    def num_pairs(self) -> int:
        """(token, token it attends to) of the prefill step."""
        return self.step_tokens * (self.num_prompt_tokens + 1) // 2

    @property
    def mean_context_tokens(self) -> float:
        """Of all answers, after a decode step, as a mean over the run's decode steps."""
        return self.batch * (self.num_prompt_tokens + self.num_output_tokens / 2)


def all_rows() -> list[Row]:
    """The file as it is, in seconds."""
    return [_row(fields) for fields in read_csv(TABLE)]


def _row(fields: dict[str, str]) -> Row:
    return Row(
        model=fields["model"],
        hardware=fields["hardware"],
        tp=int(fields["tensor_parallel"]),
        num_prompt_tokens=int(fields["prompt_size"]),
        batch=int(fields["batch_size"]),
        num_output_tokens=int(fields["token_size"]),
        prefill_s=float(fields["prompt_time"]) * MS,
        decode_s=float(fields["token_time"]) * MS,
        average_power=float(fields["average_power"]) or None,
    )


def bad_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows of a batch whose prefill took less time than that of half the batch.

    More prompts of one length cannot be read in less time: those runs did not do what the file
    says (out of memory, most likely).
    """
    by_batch: dict[object, list[Row]] = defaultdict(list)
    for row in rows:
        by_batch[(*row.key, row.num_prompt_tokens, row.batch)].append(row)
    typical = {key: median(row.prefill_s for row in group) for key, group in by_batch.items()}
    found = []
    for group in by_batch.values():
        row = group[0]
        half_s = typical.get((*row.key, row.num_prompt_tokens, row.batch // 2), 0.0)
        if typical[(*row.key, row.num_prompt_tokens, row.batch)] < half_s:
            found += group
    return found


def good_rows(rows: Sequence[Row]) -> list[Row]:
    """Without `bad_rows`, in order."""
    bad = set(bad_rows(rows))
    return [row for row in rows if row not in bad]


def named(rows: Iterable[Row]) -> tuple[str, ...]:
    """A line for each configuration among the rows."""
    found: dict[str, int] = defaultdict(int)
    for row in rows:
        where = f"{row.model} on {row.hardware}, tp = {row.tp}"
        found[f"{where}, batch {row.batch} of {row.num_prompt_tokens} tokens"] += 1
    return tuple(f"{name}: {num} rows" for name, num in found.items())
