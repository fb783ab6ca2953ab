"""POST /v1/completions and /v1/chat/completions."""

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.types import ASGIApp

from core.validation import RequestDraft
from router.http.asked import Asked
from router.http.body import read_fields
from router.http.drafts import chat_draft, completion_drafts
from router.http.edge import request_id_of
from router.http.errors import invalid
from router.http.fields import ChatFields, CompletionFields, GenerationFields
from router.http.origin import origin_of
from router.http.serving import StreamReply, serve_whole
from router.http.shapes import ChatShape, CompletionShape, Shape
from router.orchestrator import Orchestrator


class GenerationEndpoints:
    """Reads a body, hands it to the orchestrator, shapes what comes back."""

    def __init__(self, orchestrator: Orchestrator) -> None:
        self._orchestrator = orchestrator
        self._model = orchestrator.model

    async def completions(self, request: Request) -> ASGIApp:
        """Texts or token ids in, texts out."""
        fields = await read_fields(request, CompletionFields)
        defaults = self._model.defaults.sampling
        drafts = completion_drafts(fields, defaults, origin_of(request))
        shape = CompletionShape(self._model.tokenizer, echo=bool(fields.echo))
        return await self._reply(request, fields, drafts, shape)

    async def chat_completions(self, request: Request) -> ASGIApp:
        """A conversation in, its next message out."""
        fields = await read_fields(request, ChatFields)
        draft = chat_draft(fields, self._model.defaults.sampling, origin_of(request))
        return await self._reply(request, fields, [draft], ChatShape(self._model.tokenizer))

    async def _reply(
        self, request: Request, fields: GenerationFields, drafts: list[RequestDraft], shape: Shape
    ) -> ASGIApp:
        options = fields.stream_options
        if options is not None and not fields.stream:
            raise invalid("stream_options", "needs stream to be true")
        asked = Asked(
            drafts=tuple(drafts),
            shape=shape,
            tokenizer=self._model.tokenizer,
            request_id=request_id_of(request),
            created_s=int(datetime.now(UTC).timestamp()),
            with_usage=bool(options and options.include_usage),
            with_running_usage=bool(options and options.continuous_usage_stats),
            with_token_ids=bool(fields.return_token_ids),
        )
        if fields.stream:
            return StreamReply(self._orchestrator, asked)
        return await serve_whole(self._orchestrator, asked, request.receive)
