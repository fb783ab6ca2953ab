"""The KServe door: inference.GRPCInferenceService."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from typing import Any

import grpc
import grpc.aio

from core.errors import BatonError
from core.ids import RequestId
from core.validation import RequestDraft, request_id_of
from router.events import Event
from router.http.serving import serve_all
from router.http.whole import Collected
from router.kserve.ask import INPUTS, OUTPUTS, Inference, read_inference
from router.kserve.replies import VERSION, Pieces, whole
from router.membership import Membership
from router.orchestrator import Orchestrator
from router.unary import readable, unary
from rpc.codec import Reader, Undecodable, tolerant
from rpc.pb import inference_pb2 as pb
from rpc.status import REQUEST_ID_KEY, our_error, status_boundary

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
DOOR = "kserve"
TENANT_KEY = "x-baton-tenant"
TRACE_PARENT_KEY = "traceparent"
MAX_AT_ONCE = 64
"""Requests of one stream; the next is not read before one of them has ended."""
NAME = "baton"

Context = grpc.aio.ServicerContext[Any, Any]
Write = Callable[[pb.ModelStreamInferResponse], Awaitable[None]]


class KserveService:
    """Translates; everything else is the orchestrator's."""

    def __init__(self, orchestrator: Orchestrator, membership: Membership) -> None:
        self._orchestrator = orchestrator
        self._membership = membership

    async def server_live(self, message: Any, context: Context) -> pb.ServerLiveResponse:  # noqa: ANN401
        """The process lives."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, message: Any, context: Context) -> pb.ServerReadyResponse:  # noqa: ANN401
        """Requests can be answered."""
        return pb.ServerReadyResponse(ready=self._is_ready)

    async def model_ready(
        self, message: pb.ModelReadyRequest | Undecodable, context: Context
    ) -> pb.ModelReadyResponse:
        """The same, of one model."""
        async with status_boundary(context):
            is_served = readable(message).name in self._membership.models
            return pb.ModelReadyResponse(ready=is_served and self._is_ready)
        raise AssertionError("status_boundary ends the call")

    async def server_metadata(self, message: Any, context: Context) -> pb.ServerMetadataResponse:  # noqa: ANN401
        """Who serves."""
        return pb.ServerMetadataResponse(name=NAME, version=version(NAME))

    async def model_metadata(
        self, message: pb.ModelMetadataRequest | Undecodable, context: Context
    ) -> pb.ModelMetadataResponse:
        """The tensors of a model."""
        async with status_boundary(context):
            name = self._membership.find_model(readable(message).name)
            return pb.ModelMetadataResponse(
                name=name,
                versions=[VERSION],
                platform=NAME,
                inputs=[_described(*item) for item in INPUTS.items()],
                outputs=[_described(*item) for item in OUTPUTS.items()],
            )
        raise AssertionError("status_boundary ends the call")

    async def model_infer(
        self, message: pb.ModelInferRequest | Undecodable, context: Context
    ) -> pb.ModelInferResponse:
        """Whole answers."""
        request_id = request_id_of("")
        async with status_boundary(context, request_id):
            asked = self._read(readable(message), request_id, context)
            answer = Collected(asked.num_choices)

            async def take(prompt: int, event: Event) -> None:
                answer.take(prompt, event)

            await self._serve(asked, take, context)
            await context.send_initial_metadata(((REQUEST_ID_KEY, request_id),))
            return whole(asked, answer, request_id)
        raise AssertionError("status_boundary ends the call")

    async def model_stream_infer(
        self, messages: AsyncIterator[pb.ModelInferRequest | Undecodable], context: Context
    ) -> None:
        """Answers in pieces. A request that fails ends alone; the call ends when its client says so
        and all are answered. Each has an id of its own, in its responses."""
        slots, turn = asyncio.Semaphore(MAX_AT_ONCE), asyncio.Lock()

        async def write(response: pb.ModelStreamInferResponse) -> None:
            # gRPC takes one message of a call at a time.
            async with turn:
                await context.write(response)

        async with status_boundary(context), asyncio.TaskGroup() as group:
            async for message in messages:
                await slots.acquire()
                task = group.create_task(self._stream(message, context, write))
                task.add_done_callback(lambda _: slots.release())

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve here."""
        stream: Any = grpc.stream_stream_rpc_method_handler(
            self.model_stream_infer,
            request_deserializer=tolerant(Reader(pb.ModelInferRequest)),
            response_serializer=pb.ModelStreamInferResponse.SerializeToString,
        )
        methods: dict[str, Any] = {
            "ServerLive": unary(self.server_live, pb.ServerLiveRequest),
            "ServerReady": unary(self.server_ready, pb.ServerReadyRequest),
            "ModelReady": unary(self.model_ready, pb.ModelReadyRequest),
            "ServerMetadata": unary(self.server_metadata, pb.ServerMetadataRequest),
            "ModelMetadata": unary(self.model_metadata, pb.ModelMetadataRequest),
            "ModelInfer": unary(self.model_infer, pb.ModelInferRequest),
            "ModelStreamInfer": stream,
        }
        handler = grpc.method_handlers_generic_handler(SERVICE, methods)
        server.add_generic_rpc_handlers((handler,))

    @property
    def _is_ready(self) -> bool:
        return self._membership.is_ready and not self._orchestrator.admission.is_draining

    def _read(
        self, message: pb.ModelInferRequest, request_id: RequestId, context: Context
    ) -> Inference:
        defaults = self._orchestrator.model.defaults.sampling
        return read_inference(message, defaults, _origin(request_id, context))

    async def _serve(self, asked: Inference, take: Any, context: Context) -> None:  # noqa: ANN401
        left_s = context.time_remaining()
        await serve_all(self._orchestrator, asked.drafts, take, DOOR, timeout_s=left_s)

    async def _stream(
        self, message: pb.ModelInferRequest | Undecodable, context: Context, write: Write
    ) -> None:
        """One request of a stream, to its end."""
        request_id = request_id_of("")
        own_id = getattr(message, "id", "")
        try:
            asked = self._read(readable(message), request_id, context)
            pieces = Pieces(asked, request_id)

            async def take(prompt: int, event: Event) -> None:
                response = pieces.take(prompt, event)
                if response is not None:
                    await write(pb.ModelStreamInferResponse(infer_response=response))

            await self._serve(asked, take, context)
        except* BatonError as errors:
            await write(_failed(our_error(errors), own_id, request_id))


def _failed(error: BatonError, own_id: str, request_id: str) -> pb.ModelStreamInferResponse:
    response = pb.ModelInferResponse(id=own_id)
    response.parameters["request_id"].string_param = request_id
    text = f"{error.status}: {error} (request {request_id})"
    return pb.ModelStreamInferResponse(error_message=text, infer_response=response)


def _origin(request_id: str, context: Context) -> RequestDraft:
    metadata = {k: v for k, v in context.invocation_metadata() or () if isinstance(v, str)}
    return RequestDraft(
        prompt=None,
        request_id=request_id,
        tenant=metadata.get(TENANT_KEY, ""),
        trace_parent=metadata.get(TRACE_PARENT_KEY, ""),
    )


def _described(name: str, datatype: str) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=name, datatype=datatype, shape=[-1])
