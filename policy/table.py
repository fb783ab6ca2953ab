"""What placement decides on: one entry of every column per instance, and numbers of one request.

Named tuples of arrays, because numba knows no dataclasses: router and simulator run one source.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.member import Role

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ROLE_CODES: Mapping[Role, int] = {Role.PREFILL: 0, Role.DECODE: 1, Role.MIXED: 2, Role.ROUTER: 3}
PREFILL_ROLE, DECODE_ROLE, MIXED_ROLE, ROUTER_ROLE = 0, 1, 2, 3


class Phase(IntEnum):
    """What an instance is wanted for."""

    PREFILL = 0
    DECODE = 1


class Table(NamedTuple):
    """A snapshot of the instances; rows that nobody has are not alive."""

    role: Ints
    """See ROLE_CODES."""
    model: Ints
    """Equal numbers for equal models."""
    fingerprint: Ints
    """Equal numbers for equal fingerprints."""
    host: Ints
    """Equal numbers for one host."""
    alive: Bools
    draining: Bools
    helps: Bools
    """It takes work of the phase that is not its role's, for a while: see `mixed_pool`."""
    num_prefilling: Ints
    num_pending_prompt_tokens: Ints
    num_incoming: Ints
    num_decoding: Ints
    num_context_tokens: Ints
    """Of all answers it decodes."""
    num_free_blocks: Ints
    num_blocks: Ints
    block_size: Ints
    prefill_scale: Floats
    """Observed prefill time over the model's."""
    decode_scale: Floats
    """Observed step time over the model's."""


BOOL_COLUMNS = frozenset({"alive", "draining", "helps"})
FLOAT_COLUMNS = frozenset({"prefill_scale", "decode_scale"})


def empty_table(num_rows: int) -> Table:
    """Rows that nobody has."""
    return Table._make(np.zeros(num_rows, _dtype(name)) for name in Table._fields)


def _dtype(column: str) -> type[np.generic]:
    if column in BOOL_COLUMNS:
        return np.bool_
    return np.float64 if column in FLOAT_COLUMNS else np.int64


class Ask(NamedTuple):
    """One request, as the scorers see it."""

    num_input_tokens: int
    """To prefill: prompt and what was delivered."""
    num_tokens: int
    """Of context at most: it must fit into one instance."""
    hit_tokens: Ints
    """Leading input tokens that each instance caches, as far as is known."""
    source: int
    """The row that has, or will have, its KV; -1 before there is one."""


class Links(NamedTuple):
    """What moving KV costs, as observed."""

    same_host_s_per_token: float
    other_host_s_per_token: float
    handoff_s: float
    """Of any handoff, however short."""


class Weights(NamedTuple):
    """How the `slo` policy trades one request's time against that of others."""

    work: float = 1.0
    """Seconds of an instance against a second of waiting: whoever comes next waits for them."""
    disturbance: float = 1.0
    """A second that one running answer stands still against a second of waiting."""
