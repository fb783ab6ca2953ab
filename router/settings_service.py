"""Settings/Apply and Settings/History: the cluster's settings through any of its routers."""

from typing import Any

import grpc
import grpc.aio

from core.errors import ConfigError, FieldViolation, InvalidRequest, UnknownRequest
from core.settings import parse_settings
from registry.api import Registry
from registry.editions import MAX_AUTHOR_CHARS, Draft, Edition
from router.steering import Steering
from router.unary import readable, unary
from rpc.codec import Undecodable
from rpc.pb import settings_pb2
from rpc.status import status_boundary

SERVICE = settings_pb2.DESCRIPTOR.services_by_name["Settings"].full_name

Context = grpc.aio.ServicerContext[Any, Any]


class SettingsService:
    """Checks what is put, and tells what was."""

    def __init__(self, registry: Registry, steering: Steering) -> None:
        self._registry = registry
        self._steering = steering

    async def apply(
        self, request: settings_pb2.ApplyRequest | Undecodable, context: Context
    ) -> settings_pb2.ApplyReply:
        """Put an edition."""
        async with status_boundary(context):
            return await self._apply(readable(request))
        raise AssertionError("status_boundary ends the call")

    async def history(
        self, request: settings_pb2.HistoryRequest | Undecodable, context: Context
    ) -> settings_pb2.HistoryReply:
        """The editions."""
        async with status_boundary(context):
            readable(request)
            editions = await self._registry.editions()
            return settings_pb2.HistoryReply(
                editions=map(edition_to_pb, editions), applied_version=self._steering.version
            )
        raise AssertionError("status_boundary ends the call")

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve here."""
        methods = {
            "Apply": unary(self.apply, settings_pb2.ApplyRequest),
            "History": unary(self.history, settings_pb2.HistoryRequest),
        }
        handler = grpc.method_handlers_generic_handler(SERVICE, methods)
        server.add_generic_rpc_handlers((handler,))

    async def _apply(self, request: settings_pb2.ApplyRequest) -> settings_pb2.ApplyReply:
        """Raises InvalidRequest, UnknownRequest, EditionConflict or RegistryUnavailable."""
        if len(request.author) > MAX_AUTHOR_CHARS:
            reason = f"at most {MAX_AUTHOR_CHARS} characters, got {len(request.author)}"
            raise InvalidRequest((FieldViolation("author", reason),))
        text = await self._text_of(request)
        try:
            parse_settings(text)
        except ConfigError as error:
            violations = tuple(FieldViolation("text", problem) for problem in error.problems)
            raise InvalidRequest(violations) from None
        if request.dry_run:
            return settings_pb2.ApplyReply(version=await self._registry.settings_version())
        expected = request.expected_version if request.HasField("expected_version") else None
        draft = Draft(text=text, author=request.author, restores=request.restores)
        version = await self._registry.put_settings(draft, expected_version=expected)
        # This router at once; the others look every second.
        self._steering.changed.set()
        return settings_pb2.ApplyReply(version=version)

    async def _text_of(self, request: settings_pb2.ApplyRequest) -> str:
        if not request.restores:
            return request.text
        for edition in await self._registry.editions():
            if edition.version == request.restores:
                return edition.text
        raise UnknownRequest(f"no settings of version {request.restores} are kept any more")


def edition_to_pb(edition: Edition) -> settings_pb2.Edition:
    """As it is told."""
    return settings_pb2.Edition(
        version=edition.version,
        at_s=edition.at_s,
        author=edition.author,
        restores=edition.restores,
        text=edition.text,
    )
