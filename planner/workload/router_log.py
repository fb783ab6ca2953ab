"""Requests from what routers log as JSON: the lines `admitted` and `over`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from core.errors import ConfigError

Record = Mapping[str, Any]


def is_log_line(record: Record) -> bool:
    """As `core.logs.JsonLines` writes them."""
    return {"time", "logger", "message"} <= record.keys()


def ended_choices(lines: Iterable[Record], where: str) -> Sequence[Record]:
    """Arrival and lengths of each choice that ended, in the columns of a plain trace.

    It arrives when its request was admitted: the log does not tell what was refused or how long
    it queued. Choices of one request are requests of their own to the instances. Those without
    a line of their end, because they began or ended outside of the log, are left out. Raises
    ConfigError for lines that lack what ours have, or where no choice ended.
    """
    try:
        choices = list(_ended(lines))
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError((f"{where}: is no log of a router: {error!r}",)) from None
    if not choices:
        raise ConfigError((f"{where}: holds no request that was admitted and ended",))
    return choices


def _ended(lines: Iterable[Record]) -> Iterator[Record]:
    admitted = dict[str, Record]()
    for line in lines:
        match line["message"].partition(" ")[0]:
            case "admitted":
                admitted[line["request_id"]] = line
            case "over" if begun := admitted.get(line["request_id"]):
                yield {
                    "arrival_s": datetime.fromisoformat(begun["time"]).timestamp(),
                    "prompt_tokens": begun["num_prompt_tokens"],
                    "output_tokens": line["num_tokens"],
                }
