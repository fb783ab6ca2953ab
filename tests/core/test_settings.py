"""settings.toml: read whole or refused with every problem."""

import pytest

from core.errors import ConfigError
from core.settings import MAX_SETTINGS_BYTES, Settings, TenantSettings, parse_settings

FULL = """
log_level = "INFO"
[tenants.gold]
tokens_per_s = 1000
burst_tokens = 5000.0
weight = 4
max_priority = 5
[tenants."with space"]
[default_tenant]
tokens_per_s = 10.0
[limits]
max_running = 8
[policy]
name = "jsq"
work = 0.5
"""


def test_read() -> None:
    settings = parse_settings(FULL)
    gold = TenantSettings(tokens_per_s=1000.0, burst_tokens=5000.0, weight=4.0, max_priority=5)
    assert settings.of_tenant("gold") == gold
    assert settings.of_tenant("with space") == TenantSettings()
    assert settings.of_tenant("anybody").capacity_tokens == 100.0
    assert (settings.limits.max_running, settings.policy.name) == (8, "jsq")
    assert settings.log_level == "INFO"


def test_an_empty_one_changes_nothing() -> None:
    assert parse_settings("") == Settings()


REFUSED = [
    ("no TOML", "a = ", ["Invalid value"]),
    ("unknown keys, all of them", "a = 1\n[limits]\nb = 2", ["'a'", "'b'"]),
    ("of a tenant", "[tenants.x]\nspeed = 1", ["tenants.x: unknown key 'speed'"]),
    ("tenants that are none", "tenants = 3", ["[tenants.NAME]"]),
    ("negative", "[tenants.x]\ntokens_per_s = -1", ["tenants.x: tokens_per_s"]),
    ("no weight", "[default_tenant]\nweight = 0", ["default_tenant: weight"]),
    ("not a number", "[default_tenant]\ntokens_per_s = nan", ["tokens_per_s"]),
    ("no such policy", '[policy]\nname = "best"', ["policy.name", "slo"]),
    ("no such level", 'log_level = "LOUD"', ["log_level", "DEBUG"]),
    ("two at once", 'log_level = "LOUD"\n[limits]\nmax_running = -1', ["log_level", "limits"]),
    ("too long", "#" * (MAX_SETTINGS_BYTES + 1), ["limit"]),
]


@pytest.mark.parametrize(("text", "named"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_refused(text: str, named: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_settings(text)
    assert all(name in str(refused.value) for name in named)
