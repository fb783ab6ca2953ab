"""profile.json: what it means, what it refuses, and when two of them agree."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError, Incompatible
from core.profile import LOADED, StepShape, load, parse
from core.profile_compare import compare
from tests.core.profiles import condition, profile, slowed


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(profile().to_json())
    assert load(path) == profile()
    assert load(path).l_m_tokens == 128
    assert load(path).layout().condition(LOADED).prefill.per_token_s == 0.02


def document() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(profile().to_json())
    return read


def spoiled(path: str, value: object) -> str:
    """The profile with one value replaced, or a new key."""
    spoilt = document()
    *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    node: Any = spoilt
    for parent in parents:
        node = node[parent]
    node[last] = value
    return json.dumps(spoilt)


ALONE_0 = "layouts.0.conditions.0"
REFUSED = [
    # id                      where                              value     named
    ("other schema", "schema", 2, "schema must be 1, got 2"),
    ("unknown key", "subject.colour", "red", "unknown key 'colour'"),
    ("text for a number", "layouts.0.tp", "one", r"layouts\[0\].tp must be int, got str"),
    ("a number for a list", f"{ALONE_0}.points", 3, "points must be"),
    ("no layout", "layouts", [], "at least one"),
    ("no condition", "layouts.0.conditions", [], "alone and perhaps loaded"),
    ("other condition", f"{ALONE_0}.name", "asleep", "alone and perhaps loaded"),
    ("no saturation", "layouts.0.saturation.l_m_tokens", 0, "l_m_tokens must be at least 1"),
    ("negative", f"{ALONE_0}.prefill.base_s", -1.0, "at least 0"),
    ("infinite", f"{ALONE_0}.prefill.base_s", float("inf"), "Infinity is no number"),
    ("no such kind", f"{ALONE_0}.points.0.shape.kind", "nap", "prefill, decode"),
    ("no such copy", f"{ALONE_0}.copies.0.kind", "burn", "gather, scatter"),
    ("empty step", f"{ALONE_0}.points.0.shape.batch", 0, "must be positive"),
    ("low above typical", f"{ALONE_0}.points.0.low_s", 9.0, "ordered low"),
    ("falling knots", f"{ALONE_0}.decode.batches", [4, 1], "knots must rise"),
    ("falling times", f"{ALONE_0}.decode.batch_s", [0.05, 0.04], "not fall"),
    ("knots without times", f"{ALONE_0}.decode.context_s", [0.0], "as many times as knots"),
]


@pytest.mark.parametrize(
    ("path", "value", "named"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_refused(path: str, value: object, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse(spoiled(path, value))


def test_every_problem_at_once() -> None:
    spoilt = document()
    spoilt["subject"]["colour"] = "red"
    spoilt["layouts"][0]["tp"] = "one"
    with pytest.raises(ConfigError) as caught:
        parse(json.dumps(spoilt))
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)


def test_what_was_not_measured_is_named() -> None:
    with pytest.raises(ConfigError, match="no layout 2x1, measured: 1x1"):
        profile().layout(tp=2)
    with pytest.raises(ConfigError, match="not measured loaded"):
        profile(condition()).layout().condition(LOADED)


@given(batch=st.integers(1, 5), n=st.integers(1, 9), cached=st.integers(0, 9))
def test_pairs_are_counted_one_by_one(batch: int, n: int, cached: int) -> None:
    shape = StepShape(kind="prefill", batch=batch, num_tokens=n, num_cached_tokens=cached)
    one_by_one = sum(cached + position + 1 for position in range(n)) * batch
    assert shape.num_context_pairs == one_by_one


AGREEMENTS = [
    # id                     slowed by    points  L_m of the other   share  holds
    ("the same", 1.0, 0, (96, 128, 160), 1.0, True),
    ("all within", 1.04, 11, (96, 128, 160), 1.0, True),
    ("one of eleven out", 1.5, 1, (96, 128, 160), 10 / 11, True),
    ("two of eleven out", 1.5, 2, (96, 128, 160), 9 / 11, False),
    ("L_m elsewhere", 1.0, 0, (200, 256, 300), 1.0, False),
    ("L_m touches", 1.0, 0, (160, 256, 300), 1.0, True),
]


@pytest.mark.parametrize(
    ("by", "num_points", "l_m", "share", "holds"),
    [c[1:] for c in AGREEMENTS],
    ids=[c[0] for c in AGREEMENTS],
)
def test_agreement(
    by: float, num_points: int, l_m: tuple[int, int, int], share: float, holds: bool
) -> None:
    found = compare(profile(), slowed(profile(l_m=l_m), num_points, by))
    assert found.share == pytest.approx(share)
    assert found.holds is holds
    assert len(found.differences) == 22


INTERVALS = [
    # id                    stated  slowed by  agrees
    ("the wider counts", 0.2, 1.2, True),
    ("not beyond it", 0.2, 1.3, False),
    ("a wide one is cut", 1.5, 1.5, False),
]


@pytest.mark.parametrize(
    ("stated", "by", "agrees"), [c[1:] for c in INTERVALS], ids=[c[0] for c in INTERVALS]
)
def test_the_interval_that_counts(stated: float, by: float, agrees: bool) -> None:
    wide = profile(condition(interval=stated))
    for first, second in ((profile(condition()), wide), (wide, profile(condition()))):
        assert compare(first, slowed(second, 11, by)).holds is agrees


def test_nothing_in_common_is_no_agreement() -> None:
    empty = replace(condition(), points=())
    assert not compare(profile(condition()), profile(empty)).holds


def test_unlike_subjects_are_not_compared() -> None:
    other = replace(profile(), subject=replace(profile().subject, dtype="bfloat16"))
    with pytest.raises(Incompatible, match="bfloat16"):
        compare(profile(), other)


def test_readers_need_no_torch() -> None:
    code = "import sys, core.profile, policy.latency; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False, timeout=60)
    assert done.returncode == 0
