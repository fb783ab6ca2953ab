"""/openapi.json: the HTTP door described, from the very types that read its bodies."""

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from router.http.fields import ChatFields, CompletionFields, DetokenizeFields, TokenizeFields

Json = dict[str, Any]

VERSION = "1"
"""Of the API, not of the program."""

_BODIES: dict[str, tuple[str, type[BaseModel], str]] = {
    "/v1/completions": ("Complete texts or token ids.", CompletionFields, "text/event-stream"),
    "/v1/chat/completions": ("Continue a chat.", ChatFields, "text/event-stream"),
    "/tokenize": ("Text or chat to token ids.", TokenizeFields, ""),
    "/detokenize": ("Token ids to text.", DetokenizeFields, ""),
}
_LOOKS = {
    "/v1/models": "All models served here.",
    "/health": "200 while the process lives.",
    "/ready": "200 while requests can be answered, else 503.",
    "/openapi.json": "This document.",
}
_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code", "request_id"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
                "request_id": {"type": "string"},
            },
        }
    },
}


@cache
def document() -> Json:
    """OpenAPI 3.1."""
    classes = [cls for _, cls, _ in _BODIES.values()]
    template = "#/components/schemas/{model}"
    names, definitions = models_json_schema(
        [(cls, "validation") for cls in classes], ref_template=template
    )
    bodies = {
        path: _post(about, names[cls, "validation"], streamed)
        for path, (about, cls, streamed) in _BODIES.items()
    }
    looks = {path: _get(about, "application/json") for path, about in _LOOKS.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Baton", "version": VERSION, "description": "OpenAI's API, and more."},
        "paths": bodies
        | looks
        | {
            "/metrics": _get("For Prometheus.", "text/plain"),
            "/v1/models/{id}": _get("One model.", "application/json", [_MODEL_ID]),
        },
        "components": {"schemas": definitions["$defs"] | {"Error": _ERROR}},
    }


_MODEL_ID: Json = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
}


def _post(about: str, schema: Json, streamed: str) -> Json:
    content: Json = {"application/json": {"schema": {"type": "object"}}}
    if streamed:
        content[streamed] = {"schema": {"type": "string"}}
    return {
        "post": {
            "summary": about,
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": {"200": {"description": "The answer.", "content": content}, **_errors()},
        }
    }


def _get(about: str, content_type: str, parameters: list[Json] | None = None) -> Json:
    return {
        "get": {
            "summary": about,
            "parameters": parameters or [],
            "responses": {
                "200": {"description": about, "content": {content_type: {"schema": {}}}},
                **_errors(),
            },
        }
    }


def _errors() -> Json:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"default": {"description": "A typed error.", "content": content}}
