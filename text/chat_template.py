"""Chat messages → prompt text, by the Jinja template that a model's folder carries."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from core.errors import FieldViolation, InvalidRequest

Message = Mapping[str, object]
"""`role`, `content` and whatever else the model's template reads."""

RENDER_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What messages of unexpected shape make a template's expressions raise."""


class ChatTemplate:
    """One compiled template; renders as `transformers` does with `add_generation_prompt=True`.

    Raises:
        InvalidRequest: from the constructor, for source that does not compile.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._special_tokens = dict(special_tokens)
        self._template = _compile(source, now)

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt that asks for the assistant's next message."""
        if not messages:
            raise _invalid("at least 1 message is needed, got 0")
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except RENDER_ERRORS as error:
            raise _invalid(f"the model's chat template refuses them: {error}") from error


class GenerationTag(Extension):
    """`{% generation %}`: marks the assistant's words for training; rendering ignores it."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The block's body, as if the tag were not there."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(source: str, now: Callable[[], datetime]) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: now().strftime(layout)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise _invalid(f"the model's chat template is broken: {error}") from error


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _invalid(description: str) -> InvalidRequest:
    return InvalidRequest((FieldViolation("messages", description),))
