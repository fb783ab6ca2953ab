"""Chat templates: the same text as transformers, and errors that name the client's field."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest

from core.errors import InvalidRequest
from text.chat_template import ChatTemplate, Message

HI: list[Message] = [{"role": "user", "content": "hi <b>"}]
TURNS: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "é?"},
    {"role": "assistant", "content": "è!", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]},
    {"role": "user", "content": ""},
]
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "special tokens": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ unk_token }}",
    "blocks lose their line's white space": "a\n    {% if true %}\n  b\n    {% endif %}\nc\n",
    "tojson": "{% for m in messages %}{{ m | tojson }}{{ m | tojson(indent=2) }}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
    "{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|"
    "{% endfor %}",
    "tools and documents": "{{ tools is none }}{{ documents is none }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}",
}


def rendered_by_transformers(source: str, messages: list[Message]) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    render: Any = render_jinja_template  # its annotations do not say what it returns
    texts, _ = render(
        [messages], chat_template=source, add_generation_prompt=True, **SPECIAL_TOKENS
    )
    return str(texts[0])


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("messages", [HI, TURNS], ids=["one message", "turns"])
def test_renders_as_transformers_does(source: str, messages: list[Message]) -> None:
    rendered = ChatTemplate(source, SPECIAL_TOKENS).render(messages)
    assert rendered == rendered_by_transformers(source, messages)


def test_strftime_now_asks_the_given_clock() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}, lambda: datetime(2026, 2, 3))
    assert template.render(HI) == "03 Feb 2026"


REFUSED = [
    # id, template, messages, what the description says
    ("no messages", TEMPLATES["chatml"], [], "at least 1 message"),
    ("the template says no", "{{ raise_exception('no system role') }}", HI, "no system role"),
    ("content is missing", "{{ 'a' + messages[0].content }}", [{"role": "user"}], "content"),
    ("content is a list", "{{ 'a' + messages[0].content }}", [{"content": [{}]}], "list"),
    ("message is no object", "{{ messages[0].items() }}", ["hi"], "items"),
    ("a huge range", "{{ range(999999999) }}", HI, "range"),
    ("a way out of the sandbox", "{{ ''.__class__.__mro__ }}", HI, "unsafe"),
    ("a changed message", "{{ messages.append(1) }}", HI, "append"),
]


@pytest.mark.parametrize(
    ("source", "messages", "reason"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_refuses(source: str, messages: Sequence[Message], reason: str) -> None:
    template = ChatTemplate(source, {})
    with pytest.raises(InvalidRequest, match=reason) as refusal:
        template.render(messages)
    assert [violation.field for violation in refusal.value.violations] == ["messages"]


def test_a_broken_template_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="broken"):
        ChatTemplate("{% for %}", {})
