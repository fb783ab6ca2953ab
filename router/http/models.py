"""What clients ask about models and tokens: /v1/models, /tokenize, /detokenize."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from core.errors import InvalidRequest
from core.validation import token_violations
from router.http.body import read_fields
from router.http.drafts import chat_of
from router.http.errors import invalid
from router.http.fields import DetokenizeFields, TokenizeFields
from router.membership import Membership
from router.orchestrator import LONG_PROMPT_CHARS
from router.served_model import ServedModel


class ModelEndpoints:
    """Answers from what the router knows; no instance is asked."""

    def __init__(self, membership: Membership, model: ServedModel, created_s: int) -> None:
        """`created_s`: since 1970, of this router's start; models have no birthday of their own."""
        self._membership = membership
        self._tokenizer = model.tokenizer
        self._created_s = created_s

    async def list_all(self, _: Request) -> JSONResponse:
        """All models served here."""
        models = [self._described(name) for name in self._membership.models]
        return JSONResponse({"object": "list", "data": models})

    async def show(self, request: Request) -> JSONResponse:
        """One model."""
        return JSONResponse(self._described(self._membership.find_model(request.path_params["id"])))

    async def tokenize(self, request: Request) -> JSONResponse:
        """Text or chat → token ids, as a request would have them."""
        fields = await read_fields(request, TokenizeFields)
        name = self._membership.find_model(fields.model)
        token_ids = await self._encode(fields)
        texts = None
        if fields.return_token_strs:
            texts = [self._tokenizer.token_text(token_id) for token_id in token_ids]
        return JSONResponse(
            {
                "count": len(token_ids),
                "max_model_len": self._membership.max_context_tokens(name),
                "tokens": token_ids,
                "token_strs": texts,
            }
        )

    async def detokenize(self, request: Request) -> JSONResponse:
        """Token ids → text."""
        fields = await read_fields(request, DetokenizeFields)
        self._membership.find_model(fields.model)
        found = tuple(token_violations("tokens", fields.tokens, self._tokenizer.vocab_size))
        if found:
            raise InvalidRequest(found)
        text = await asyncio.to_thread(self._tokenizer.decode, fields.tokens)
        return JSONResponse({"prompt": text})

    async def _encode(self, fields: TokenizeFields) -> list[int]:
        if (fields.prompt is None) == (fields.messages is None):
            raise invalid("prompt", "one of prompt and messages is needed")
        if fields.messages is not None:
            chat = chat_of(fields.messages)
            messages = [{"role": m.role, "content": m.content} for m in chat.messages]
            return await asyncio.to_thread(self._tokenizer.encode_chat, messages)
        prompt, special = fields.prompt or "", fields.add_special_tokens
        if len(prompt) < LONG_PROMPT_CHARS:
            return self._tokenizer.encode(prompt, add_special_tokens=special)
        return await asyncio.to_thread(self._tokenizer.encode, prompt, add_special_tokens=special)

    def _described(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created_s,
            "owned_by": "baton",
            "max_model_len": self._membership.max_context_tokens(name),
        }
