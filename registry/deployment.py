"""The text that says what the cluster is to be: the leader's, kept for the next one."""

from core.errors import ConfigError
from registry.leader import term_problems

MAX_DEPLOYMENT_BYTES = 1024 * 1024
"""A plan of thousands of instances is some hundred KiB of TOML."""


def check_deployment(text: str, term: int) -> None:
    """Refuse what is past its bounds, before anything is sent."""
    if problems := (*deployment_problems(text), *term_problems(term, 0)):
        raise ConfigError(problems)


def deployment_problems(text: str) -> tuple[str, ...]:
    """What is wrong with it."""
    num_bytes = len(text.encode())
    if num_bytes > MAX_DEPLOYMENT_BYTES:
        return (f"deployment of {num_bytes} bytes, limit {MAX_DEPLOYMENT_BYTES}",)
    return ()
