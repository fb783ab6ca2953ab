"""What `baton serve` makes of its options."""

from dataclasses import replace

from cli.serve import saturating
from core.config import Config, WorkerConfig


def test_a_profile_sizes_prefill_steps_unless_the_settings_do() -> None:
    assert saturating(Config(), 512).worker.prefill_step_tokens == 512
    named = replace(Config(), worker=WorkerConfig(prefill_step_tokens=100))
    assert saturating(named, 512) == named
