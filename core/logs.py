"""Log lines as text for people, or as JSON for machines; where they are written they look the same.

`logger.info("placed handoff_id=%s attempt=%d", …)` is a line of text, or an object that has
`handoff_id`, `attempt` and, because a handoff is one request's, `request_id`.
"""

import json
import logging
import math
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

TEXT = "%(asctime)s %(name)s %(message)s"

_PLACEHOLDER = re.compile(r"(?:(\w+)=)?%[-#0 +]*(?:\d+|\*)?(?:\.(?:\d+|\*))?([a-zA-Z%])")
"""One of `logging`, and the word before it: key=%s."""


class LogFormat(StrEnum):
    """Who reads them."""

    TEXT = "text"
    JSON = "json"


def begin_logging(level: str, log_format: str) -> None:
    """To standard error, once per process; `log_format` is one of LogFormat."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if log_format == LogFormat.JSON else logging.Formatter(TEXT))
    logging.basicConfig(level=level, handlers=[handler])


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """With `time` (RFC 3339, UTC), `level`, `logger`, `message`, and what the message names."""
        document: dict[str, Any] = {
            "time": _moment(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, value in _fields(record):
            document.setdefault(key, value)
        if "handoff_id" in document:
            request_id, _, _ = str(document["handoff_id"]).rpartition("/")
            document.setdefault("request_id", request_id)
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False, allow_nan=False)


def _moment(created_s: float) -> str:
    moment = datetime.fromtimestamp(created_s, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    """The arguments that the message has a word for."""
    if not isinstance(record.args, tuple):
        return
    arguments = iter(record.args)
    for key, kind in _PLACEHOLDER.findall(str(record.msg)):
        if kind == "%":
            continue
        # A message with more places than arguments has failed in getMessage.
        value = next(arguments, None)
        if key:
            yield key, _plain(value)


def _plain(value: object) -> object:
    """As JSON has it; anything else as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)
