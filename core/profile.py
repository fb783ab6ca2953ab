"""profile.json: how fast one model is on one machine. `baton profile` writes it; the router, the
controller and the planner read it, none of which needs torch for that."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from core.errors import ConfigError
from core.json_tree import loads, tree

SCHEMA = 1
KINDS = ("prefill", "decode")
COPIES = ("gather", "scatter")
ALONE = "alone"
"""Nothing else runs on the machine."""
LOADED = "loaded"
"""The other cores (or, on a GPU, another process on it) compute matrix products."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """A step whose entries are all alike."""

    kind: str
    """prefill or decode."""
    batch: int
    """Entries."""
    num_tokens: int
    """Computed per entry; 1 for decode."""
    num_cached_tokens: int = 0
    """Per entry, in the cache before the step."""

    @property
    def num_step_tokens(self) -> int:
        """Computed by the step."""
        return self.batch * self.num_tokens

    @property
    def num_context_tokens(self) -> int:
        """Of all entries, after the step."""
        return self.batch * (self.num_cached_tokens + self.num_tokens)

    @property
    def num_context_pairs(self) -> int:
        """(token, token it attends to), itself included, over all entries."""
        n = self.num_tokens
        return self.batch * (n * self.num_cached_tokens + n * (n + 1) // 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measured step."""

    shape: StepShape
    held_out: bool
    """Not fitted to: the fit is judged by it."""
    time_s: float
    """See `deploy.profile_result.typical_s`."""
    low_s: float
    """The quickest round."""
    high_s: float
    """The slowest round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyRate:
    """Copies between paged KV and a flat buffer in host memory: what a handoff does at either
    end, and what swapping does (out is a gather, in a scatter)."""

    kind: str
    """gather or scatter."""
    num_bytes: int
    """Of one copy."""
    bytes_per_s: float
    low_bytes_per_s: float
    high_bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillFit:
    """base + per token + per pair; see `policy.latency.prefill_s`."""

    base_s: float
    per_token_s: float
    per_pair_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeFit:
    """A table over the batch plus a table over the context; see `policy.latency.decode_s`."""

    batches: tuple[int, ...]
    batch_s: tuple[float, ...]
    num_context_tokens: tuple[int, ...]
    """Of all entries; from 0."""
    context_s: tuple[float, ...]
    """From 0 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitError:
    """Relative errors (0.05 is 5 %) at the held-out points."""

    num_points: int
    median: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Everything measured under one condition."""

    name: str
    """alone or loaded."""
    num_rounds: int
    points: tuple[Point, ...]
    copies: tuple[CopyRate, ...]
    prefill: PrefillFit
    decode: DecodeFit
    prefill_error: FitError
    decode_error: FitError
    error: FitError
    """Over the held-out points of both kinds."""
    interval: float
    """A second run's points lie within this share of these: nine of ten, see
    `core.profile_compare`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturation:
    """L_m of DistServe: the fewest prompt tokens per step that keep the device busy."""

    l_m_tokens: int
    low_tokens: int
    """The least that a single round gave."""
    high_tokens: int
    """The most that a single round gave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutProfile:
    """One layout's figures."""

    tp: int
    pp: int
    saturation: Saturation
    conditions: tuple[Condition, ...]

    def condition(self, name: str = ALONE) -> Condition:
        """The one of this name; `problems` sees to it that alone is there."""
        found = {condition.name: condition for condition in self.conditions}
        if name not in found:
            raise ConfigError((f"profile: {self.tp}x{self.pp} was not measured {name}",))
        return found[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was measured on."""

    cpu: str
    num_cores: int
    num_threads: int
    """Of one forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What was measured; profiles of unlike subjects say nothing of each other."""

    model: str
    weights_digest: str
    dtype: str
    device: str
    machine: Machine
    block_size: int
    kv_bytes_per_token: int
    weights: str = "stored"
    """stored, or what they were rounded to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The whole file."""

    schema: int = SCHEMA
    subject: Subject
    measured_at: str
    """ISO 8601."""
    command: str
    layouts: tuple[LayoutProfile, ...]

    @property
    def l_m_tokens(self) -> int:
        """Of the first layout."""
        return self.layouts[0].saturation.l_m_tokens

    def layout(self, tp: int = 1, pp: int = 1) -> LayoutProfile:
        """Raises ConfigError for one that was not measured."""
        for layout in self.layouts:
            if (layout.tp, layout.pp) == (tp, pp):
                return layout
        measured = ", ".join(f"{layout.tp}x{layout.pp}" for layout in self.layouts)
        raise ConfigError((f"profile: no layout {tp}x{pp}, measured: {measured}",))

    def to_json(self) -> str:
        """What `parse` reads."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        if not self.layouts:
            yield "layouts: at least one is needed"
        for layout in self.layouts:
            where = f"layout {layout.tp}x{layout.pp}"
            names = [condition.name for condition in layout.conditions]
            if ALONE not in names or len(set(names)) < len(names) or {*names} - {ALONE, LOADED}:
                yield f"{where}: conditions must be alone and perhaps loaded, got {names}"
            if layout.saturation.l_m_tokens < 1:
                yield f"{where}: l_m_tokens must be at least 1, got {layout.saturation.l_m_tokens}"
            for condition in layout.conditions:
                for problem in _condition_problems(condition):
                    yield f"{where}, {condition.name}: {problem}"


def load(path: Path) -> Profile:
    """Read profile.json. Raises ConfigError with every problem."""
    return parse(path.read_text(encoding="utf-8"), str(path))


def parse(text: str, name: str = "profile") -> Profile:
    """Read JSON text; see `load`."""
    try:
        document = loads(text)
    except ValueError as error:
        raise ConfigError((f"{name}: {error}",)) from error
    found = document.get("schema") if isinstance(document, dict) else None
    if found != SCHEMA:  # first: of another schema every key might be unknown
        raise ConfigError((f"{name}: schema must be {SCHEMA}, got {found}",))
    problems: list[str] = []
    profile = tree(Profile, document, name, problems)
    if not problems:
        assert isinstance(profile, Profile)
        problems += [f"{name}: {problem}" for problem in profile.problems()]
    if problems:
        raise ConfigError(tuple(problems))
    return profile  # type: ignore[return-value]


def _condition_problems(condition: Condition) -> Iterator[str]:
    for point in condition.points:
        shape = point.shape
        if shape.kind not in KINDS:
            yield f"a point's kind must be one of {', '.join(KINDS)}, got {shape.kind!r}"
        if min(shape.batch, shape.num_tokens) < 1 or shape.num_cached_tokens < 0:
            yield f"a point's counts must be positive, got {shape}"
        if not 0 < point.low_s <= point.time_s <= point.high_s:
            yield f"times must be above 0 and ordered low, typical, high, got {point}"
    yield from (
        f"a copy's kind must be one of {', '.join(COPIES)}, got {copy.kind!r}"
        for copy in condition.copies
        if copy.kind not in COPIES
    )
    coefficients = asdict(condition.prefill).values()
    if not all(value >= 0 for value in coefficients):
        yield "prefill's coefficients must be at least 0"
    decode = condition.decode
    yield from _table_problems("batch", decode.batches, decode.batch_s)
    yield from _table_problems("context", decode.num_context_tokens, decode.context_s)


def _table_problems(name: str, knots: tuple[int, ...], seconds: tuple[float, ...]) -> Iterator[str]:
    if not knots or len(knots) != len(seconds):
        yield f"decode's {name} table needs as many times as knots, got {len(knots)} knots"
    if list(knots) != sorted(set(knots)):
        yield f"decode's {name} knots must rise, got {list(knots)}"
    if list(seconds) != sorted(seconds) or any(s < 0 for s in seconds):
        yield f"decode's {name} times must be at least 0 and not fall, got {list(seconds)}"
