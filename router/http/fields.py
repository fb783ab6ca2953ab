"""What HTTP clients send: names and types as OpenAI's API has them, vLLM's extensions too.

Types are judged here, bounds in core.validation, as for every door. Unknown fields are ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_PROMPTS = 64
"""Of one request; each is a request of its own to the cluster."""

Extension = Field(default=None, description="An extension: not in OpenAI's API.")


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
    n: int | None = None
    seed: int | None = Field(default=None, description="-2^63 to 2^64-1; drawn when not given.")
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(
        default=None, description="Token id, as a string, to -100 to 100."
    )
    stop: Annotated[list[str] | None, BeforeValidator(_as_list)] = Field(
        default=None, description="A string, or up to 64 of at most 64 characters."
    )
    max_tokens: int | None = None
    response_format: ResponseFormat | None = None
    user: str | None = Field(default=None, description="Ignored.")
    tools: list[Any] | None = Field(default=None, description="Refused unless empty.")
    top_k: int | None = Field(default=None, description="An extension; 0 and -1 keep all tokens.")
    min_p: float | None = Extension
    repetition_penalty: float | None = Extension
    min_tokens: int | None = Extension
    ignore_eos: bool | None = Extension
    stop_token_ids: list[int] | None = Extension
    structured_outputs: StructuredOutputs | None = Extension
    return_token_ids: bool | None = Field(
        default=None, description="An extension: choices tell their token ids."
    )
    priority: int | None = Field(
        default=None, description="An extension, as in vLLM: lower goes first; -10 to 10."
    )
    prompt_logprobs: int | None = Field(default=None, description="Refused.")
    lora_request: Any = Field(default=None, description="Refused: adapters are not served.")


class CompletionFields(GenerationFields):
    """Of POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]] | None = None
    logprobs: int | None = Field(default=None, description="0 to 20 likeliest tokens.")
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
    tool_calls: list[Any] | None = Field(default=None, description="Refused unless empty.")


class ChatFields(GenerationFields):
    """Of POST /v1/chat/completions."""

    messages: list[MessageFields]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    functions: list[Any] | None = Field(default=None, description="Refused unless empty.")
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
