"""Which work is meant: presets, files, given lengths, and mixes of classes."""

from pathlib import Path

import pytest

from core.errors import ConfigError
from core.slo import Slo
from planner.ask.mix import load_mix
from planner.ask.work import WorkAsk, workload_of
from planner.workload.arrivals import Gaps

SLO = Slo(ttft_s=0.5, tpot_s=0.05)


def ask(**given: object) -> WorkAsk:
    return WorkAsk(**{"slo": SLO, **given})  # type: ignore[arg-type]


MADE = [
    # id                 given                                             random  mean prompt
    ("a preset, drawn", {"workload": "azure-conv"}, True, 1154.7),
    ("as recorded", {"workload": "azure-conv", "arrivals": "trace"}, False, 1154.7),
    ("lengths", {"prompt_tokens": "100:200", "output_tokens": "8"}, True, 150.0),
]


@pytest.mark.parametrize(
    ("given", "is_random", "prompt"), [c[1:] for c in MADE], ids=[c[0] for c in MADE]
)
def test_made(given: dict[str, object], is_random: bool, prompt: float) -> None:
    made = workload_of(ask(**given))
    assert made.is_random is is_random
    assert made.mean_prompt_tokens == pytest.approx(prompt, abs=0.1)
    assert made.slos == (SLO,)


def test_cached_shares_reach_the_traffic() -> None:
    made = workload_of(ask(prompt_tokens="100", output_tokens="8", cached_share=0.25))
    assert set(made.traffic(1.0, 10).num_cached_tokens.tolist()) == {25}


REFUSED = [
    # given                                                         says
    ({}, "--workload is needed"),
    ({"workload": "azure-conv", "prompt_tokens": "5"}, "--workload is needed"),
    ({"prompt_tokens": "5"}, "--workload is needed"),
    ({"prompt_tokens": "x", "output_tokens": "y"}, "--prompt-tokens must be .*\n--output-tokens"),
    ({"workload": "sharegpt", "arrivals": "trace"}, "lengths and no moments"),
    ({"workload": "azure-conv", "arrivals": "often"}, "--arrivals must be"),
    ({"workload": "azure-conv", "slo": Slo()}, "--slo is needed"),
    ({"workload": "azure-conv", "target": 0.0}, "target must be above 0"),
]


@pytest.mark.parametrize(("given", "says"), REFUSED)
def test_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        workload_of(ask(**given))


MIX = """
[[classes]]
name = "chat"
share = 0.75
workload = "azure-conv"
slo = { ttft = 0.5, tpot = 0.05 }

[[classes]]
name = "report"
share = 0.25
prompt_tokens = "4000"
output_tokens = "lognormal:500:0.5"
slo = { e2e = 60 }
target = 0.99
cached = 0.5
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mix.toml"
    path.write_text(text)
    return path


def test_a_mix_has_classes_with_limits_of_their_own(tmp_path: Path) -> None:
    made = workload_of(ask(workload=str(written(tmp_path, MIX)), slo=Slo()))
    assert [each.name for each in made.classes] == ["chat", "report"]
    assert made.slos == (SLO, Slo(e2e_s=60.0))
    assert [each.target for each in made.classes] == [0.9, 0.99]
    shares = made.traffic(1.0, 4000).request_class.mean()
    assert shares == pytest.approx(0.25, abs=0.03)


BROKEN = [
    # text                                               says
    ("x = 1", "must hold tables"),
    ("[[classes]]\nname = 'a'\nshare = 1.0\ncolour = 1\n", "unknown key 'colour'"),
    ("[[classes]]\nname = 'a'\nshare = 1.0\nworkload = 'sharegpt'\n", "slo must limit"),
    ("[[classes]]\nname = 'a'\nshare = 1.0\nslo = { ttft = 1 }\n", "needs workload, or"),
    ("[[", "mix.toml"),
]


@pytest.mark.parametrize(("text", "says"), BROKEN)
def test_broken_mixes(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        load_mix(written(tmp_path, text), Gaps())
