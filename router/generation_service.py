"""The gRPC front door: Generation/Generate."""

from dataclasses import replace
from typing import Any

import grpc
import grpc.aio

from core.validation import request_id_of
from router.events import Accepted, Event
from router.orchestrator import Orchestrator
from router.wire import draft_from_pb, event_to_pb
from rpc.codec import Reader, Undecodable, tolerant
from rpc.pb import generation_pb2
from rpc.status import REQUEST_ID_KEY, status_boundary

TRACE_PARENT_KEY = "traceparent"
"""Of W3C's Trace Context, as gRPC metadata."""
SERVICE = generation_pb2.DESCRIPTOR.services_by_name["Generation"].full_name

Context = grpc.aio.ServicerContext[
    "generation_pb2.GenerateRequest | Undecodable", generation_pb2.GenerateResponse
]


class GenerationService:
    """Translates; everything else is the orchestrator's."""

    def __init__(self, orchestrator: Orchestrator) -> None:
        self._orchestrator = orchestrator

    async def generate(
        self, message: generation_pb2.GenerateRequest | Undecodable, context: Context
    ) -> None:
        """Stream one request's answer. A client that leaves cancels this very call."""
        request_id = request_id_of(getattr(message, "request_id", ""))
        async with status_boundary(context, request_id):
            if isinstance(message, Undecodable):
                raise message.error

            async def write(event: Event) -> None:
                if isinstance(event, Accepted):
                    await context.send_initial_metadata(((REQUEST_ID_KEY, request_id),))
                await context.write(event_to_pb(event))

            draft = draft_from_pb(message, self._orchestrator.model.defaults.sampling)
            await self._orchestrator.serve(
                replace(draft, trace_parent=_trace_parent(context)),
                write,
                timeout_s=context.time_remaining(),
                request_id=request_id,
            )

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve here; messages that cannot be read get INVALID_ARGUMENT, not gRPC's INTERNAL."""
        method: Any = grpc.unary_stream_rpc_method_handler(
            self.generate,
            request_deserializer=tolerant(Reader(generation_pb2.GenerateRequest)),
            response_serializer=generation_pb2.GenerateResponse.SerializeToString,
        )
        handler = grpc.method_handlers_generic_handler(SERVICE, {"Generate": method})
        server.add_generic_rpc_handlers((handler,))


def _trace_parent(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == TRACE_PARENT_KEY and isinstance(value, str):
            return value
    return ""
