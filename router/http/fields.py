"""What HTTP clients send: names and types as OpenAI's API has them, vLLM's extensions too.

Types are judged here, bounds in core.validation, as for every door. Unknown fields are ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from core import limits

MAX_PROMPTS = 64
"""Of one request; each is a request of its own to the cluster."""

EXTENSION = "An extension: not in OpenAI's API."
Extension = Field(default=None, description=EXTENSION)


def _bounded(about: str | None = None, **bounds: Any) -> Any:  # noqa: ANN401 - as pydantic's Field
    """Bounds for who reads /openapi.json; core.validation is what holds them."""
    return Field(default=None, description=about, json_schema_extra=bounds)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class _Fields(BaseModel):
    # Strings are no numbers: "5" for 5 is a mistake of the client's that it should see.
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class StreamOptions(_Fields):
    """What a stream tells beside its tokens."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Extension


class JsonSchema(_Fields):
    """A schema that an answer must match."""

    name: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class ResponseFormat(_Fields):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(_Fields):
    """vLLM's way to say the same; choice, grammar and structural_tag are refused."""

    json_: str | dict[str, Any] | None = Field(default=None, alias="json")
    regex: str | None = None
    json_object: bool | None = None
    choice: list[Any] | None = None
    grammar: str | None = None
    structural_tag: Any = None


class GenerationFields(_Fields):
    """What completions and chats have in common."""

    model: str = Field(default="", description="As listed by /v1/models; empty: the only one.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = _bounded(minimum=1, maximum=limits.MAX_NUM_CHOICES)
    seed: int | None = _bounded("Drawn when not given.", minimum=-(2**63), maximum=limits.MAX_SEED)
    temperature: float | None = _bounded(minimum=0, maximum=limits.MAX_TEMPERATURE)
    top_p: float | None = _bounded(exclusiveMinimum=0, maximum=1)
    presence_penalty: float | None = _bounded(minimum=-2, maximum=2)
    frequency_penalty: float | None = _bounded(minimum=-2, maximum=2)
    logit_bias: dict[str, float] | None = _bounded(
        "Token id, as a string, to -100 to 100.", maxProperties=limits.MAX_LOGIT_BIAS
    )
    stop: Annotated[list[str] | None, BeforeValidator(_as_list)] = _bounded(
        "A string, or up to 64 of at most 64 characters.", maxItems=limits.MAX_STOP_STRINGS
    )
    max_tokens: int | None = _bounded(minimum=1)
    response_format: ResponseFormat | None = None
    user: str | None = Field(default=None, description="Ignored.")
    tools: list[Any] | None = _bounded("Refused unless empty.", maxItems=0)
    top_k: int | None = _bounded("An extension; 0 and -1 keep all tokens.", minimum=-1)
    min_p: float | None = _bounded(EXTENSION, minimum=0, maximum=1)
    repetition_penalty: float | None = _bounded(EXTENSION, exclusiveMinimum=0, maximum=10)
    min_tokens: int | None = _bounded(EXTENSION, minimum=0)
    ignore_eos: bool | None = Extension
    stop_token_ids: list[int] | None = Extension
    structured_outputs: StructuredOutputs | None = Extension
    return_token_ids: bool | None = Field(
        default=None, description="An extension: choices tell their token ids."
    )
    priority: int | None = _bounded(
        "An extension, as in vLLM: lower goes first.",
        minimum=-limits.MAX_PRIORITY,
        maximum=limits.MAX_PRIORITY,
    )
    prompt_logprobs: int | None = Field(default=None, description="Refused.")
    lora_request: Any = Field(default=None, description="Refused: adapters are not served.")


class CompletionFields(GenerationFields):
    """Of POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]] | None = Field(
        default=None, description=f"Needed; a list of texts or of token ids: up to {MAX_PROMPTS}."
    )
    logprobs: int | None = _bounded("So many likeliest tokens.", minimum=0, maximum=20)
    echo: bool | None = None
    best_of: int | None = Field(default=None, description="Refused above n.")
    suffix: str | None = Field(default=None, description="Refused.")


class ContentPart(_Fields):
    """One part of a message; only text is understood."""

    type: str
    text: str | None = None


class MessageFields(_Fields):
    """One message of a chat."""

    role: str
    content: str | list[ContentPart] | None = None
    tool_calls: list[Any] | None = _bounded("Refused unless empty.", maxItems=0)


class ChatFields(GenerationFields):
    """Of POST /v1/chat/completions."""

    messages: list[MessageFields] = Field(json_schema_extra={"minItems": 1})
    max_completion_tokens: int | None = _bounded(minimum=1)
    logprobs: bool | None = None
    top_logprobs: int | None = _bounded("Needs logprobs.", minimum=0, maximum=20)
    functions: list[Any] | None = _bounded("Refused unless empty.", maxItems=0)
    modalities: list[str] | None = Field(default=None, description="Only text.")


class TokenizeFields(_Fields):
    """Of POST /tokenize: a prompt or messages."""

    model: str = ""
    prompt: str | None = None
    messages: list[MessageFields] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class DetokenizeFields(_Fields):
    """Of POST /detokenize."""

    model: str = ""
    tokens: list[int]
