"""The lines of a batch file: one request each, all problems told at once."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from core.errors import ConfigError

URLS = ("/v1/completions", "/v1/chat/completions")
MAX_LINES = 1_000_000
MAX_PROBLEMS = 20
"""Shown; who sees so many has another file in hand than intended."""


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request."""

    custom_id: str
    url: str
    body: dict[str, Any]

    @property
    def prompt(self) -> str:
        """What is equal in two prompts is equal in these, from the start on."""
        return self.url + _text_of(self.body)


def read_lines(lines: Iterable[str]) -> list[BatchLine]:
    """All requests of a file. Raises ConfigError with what is wrong, by line number."""
    found, problems = list[BatchLine](), list[str]()
    ids: dict[str, int] = {}
    for number, text in enumerate(lines, 1):
        if number > MAX_LINES:
            raise ConfigError((f"more than {MAX_LINES} lines: split the file",))
        if not text.strip():
            continue
        line = _read(text, number, problems)
        if line is None:
            continue
        if (first := ids.setdefault(line.custom_id, number)) != number:
            problems.append(f"line {number}: the custom_id of line {first}, which must be unique")
        found.append(line)
    if problems:
        more = len(problems) - MAX_PROBLEMS
        tail = [f"and {more} more"] if more > 0 else []
        raise ConfigError((*problems[:MAX_PROBLEMS], *tail))
    return found


def _read(text: str, number: int, problems: list[str]) -> BatchLine | None:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.append(f"line {number}: no JSON: {getattr(error, 'msg', 'nested too deep')}")
        return None
    if not isinstance(document, dict):
        problems.append(f"line {number}: must be an object")
        return None
    before = len(problems)
    problems.extend(f"line {number}: {problem}" for problem in _problems(document))
    if len(problems) > before:
        return None
    return BatchLine(document["custom_id"], document["url"], document["body"])


def _problems(document: dict[str, Any]) -> Iterator[str]:
    custom_id = document.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        yield "custom_id must be a text"
    if document.get("method", "POST") != "POST":
        yield "method must be POST"
    if document.get("url") not in URLS:
        yield f"url must be {' or '.join(URLS)}"
    body = document.get("body")
    if not isinstance(body, dict):
        yield "body must be an object"
    elif body.get("stream"):
        yield "body.stream: answers of a batch come whole"


def _text_of(body: dict[str, Any]) -> str:
    messages = body.get("messages")
    if isinstance(messages, list):
        return "".join(f"\0{_part(m, 'role')}\0{_part(m, 'content')}" for m in messages)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        # A character per token: what two prompts share is counted in tokens, too.
        return "".join(chr(token_id) if _is_token(token_id) else "\0" for token_id in prompt)
    return prompt if isinstance(prompt, str) else json.dumps(prompt)


def _is_token(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 0x110000


def _part(message: object, name: str) -> str:
    value = message.get(name) if isinstance(message, dict) else message
    return value if isinstance(value, str) else json.dumps(value)
