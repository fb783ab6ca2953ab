"""What an error says of itself; tests/rpc/test_status.py sends each over a wire."""

import pytest

from core.errors import (
    BatonError,
    ConfigError,
    FieldViolation,
    InvalidRequest,
    KvCorrupt,
    NoInstance,
    Saturated,
)

REASONS = [
    (Saturated("full"), "SATURATED", True),
    (NoInstance("nobody"), "NO_INSTANCE", True),
    (KvCorrupt("damaged"), "KV_CORRUPT", True),
    (InvalidRequest(()), "INVALID_REQUEST", False),
]


@pytest.mark.parametrize(("error", "reason", "retryable"), REASONS, ids=[c[1] for c in REASONS])
def test_reason(error: BatonError, reason: str, retryable: bool) -> None:
    assert (error.reason, error.retryable) == (reason, retryable)


def test_every_problem_is_in_the_message() -> None:
    violations = (FieldViolation("seed", "too large"), FieldViolation("top_p", "not above 0"))
    assert str(InvalidRequest(violations)) == "seed: too large; top_p: not above 0"
    assert str(ConfigError(("one", "two"))) == "one\ntwo"
