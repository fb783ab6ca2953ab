"""Who may change the cluster: one leader at a time, each by a term higher than all before it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from core.errors import BatonError, ConfigError
from core.member import INSTANCE_ID, is_address

MAX_TERM = 2**53 - 1
"""Lua counts in doubles; milliseconds since 1970 get there in 285,000 years."""
MAX_RECORD_BYTES = 512
"""A term, a name and an address, of at most 16, 128 and 256 characters."""
_RECORD = re.compile(r"([1-9][0-9]{0,15}) (\S+) (\S+)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """Who was granted one term; valid or not built."""

    term: int
    holder: str
    """Names one process, as an instance id does: a restarted one needs another name."""
    address: str
    """host:port of the controller's gRPC server."""

    def __post_init__(self) -> None:
        """Refuse what could not be read back."""
        if problems := (*holder_problems(self.holder, self.address), *term_problems(self.term, 1)):
            raise ConfigError(problems)

    def record(self) -> str:
        """As a store keeps it."""
        return f"{self.term} {self.holder} {self.address}"


class AnotherLeads(BatonError):
    """A term is known that is not ours, and not lower."""

    status = "ABORTED"

    def __init__(self, leader: Leader) -> None:
        super().__init__(f"{leader.holder} at {leader.address} has term {leader.term}")
        self.leader = leader
        """Whose term that is; it may have ended meanwhile."""


def leader_of(record: str) -> Leader | None:
    """What `Leader.record` wrote; None when it is damaged."""
    match = _RECORD.fullmatch(record)
    if match is None:
        return None
    try:
        return Leader(term=int(match[1]), holder=match[2], address=match[3])
    except ConfigError:
        return None


def check_candidate(holder: str, address: str, term: int | None) -> None:
    """Refuse who could not be told about, before anything is sent."""
    terms = () if term is None else term_problems(term, 1)
    if problems := (*holder_problems(holder, address), *terms):
        raise ConfigError(problems)


def holder_problems(holder: str, address: str) -> Iterator[str]:
    """What is wrong with them."""
    if not INSTANCE_ID.fullmatch(holder):
        yield "holder must be 1 to 128 of letters, digits and ._:/@-"
    if not is_address(address):
        yield "address is not host:port"


def term_problems(term: int, least: int) -> Iterator[str]:
    """What is wrong with it."""
    if not least <= term <= MAX_TERM:
        yield f"term must be {least} to {MAX_TERM}, got {term}"


def outranks(last: Leader | None, holder: str, term: int) -> bool:
    """Whether the last leader known forbids `holder` to go on with its `term`."""
    if last is None or last.term < term:
        return False
    return last.term > term or last.holder != holder
