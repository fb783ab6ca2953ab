"""All paths of the HTTP door."""

from collections.abc import Callable
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from router.http.edge import Edge
from router.http.generation import GenerationEndpoints
from router.http.models import ModelEndpoints
from router.http.openapi import document
from router.membership import Membership
from router.orchestrator import Orchestrator

Exposition = Callable[[str | None], tuple[bytes, str]]
"""Accept header → metrics and their content type."""


def build_app(
    orchestrator: Orchestrator, membership: Membership, exposition: Exposition
) -> ASGIApp:
    """The application of one router."""
    generation = GenerationEndpoints(orchestrator)
    started_s = int(datetime.now(UTC).timestamp())
    models = ModelEndpoints(membership, orchestrator.model, started_s)
    health = HealthEndpoints(orchestrator, membership, exposition)
    routes = [
        Route("/v1/completions", generation.completions, methods=["POST"]),
        Route("/v1/chat/completions", generation.chat_completions, methods=["POST"]),
        Route("/v1/models", models.list_all),
        Route("/v1/models/{id:path}", models.show),
        Route("/tokenize", models.tokenize, methods=["POST"]),
        Route("/detokenize", models.detokenize, methods=["POST"]),
        Route("/health", health.health),
        Route("/ready", health.ready),
        Route("/metrics", health.metrics),
        Route("/openapi.json", health.openapi),
    ]
    return Edge(Router(routes, redirect_slashes=False))


class HealthEndpoints:
    """What machines ask about this router."""

    def __init__(
        self, orchestrator: Orchestrator, membership: Membership, exposition: Exposition
    ) -> None:
        self._orchestrator = orchestrator
        self._membership = membership
        self._exposition = exposition

    async def health(self, _: Request) -> Response:
        """The process lives: restart it when this does not answer."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """Requests can be answered: send some only while this says 200."""
        if self._orchestrator.admission.is_draining:
            return JSONResponse({"status": "draining"}, 503)
        if not self._membership.is_ready:
            return JSONResponse({"status": "no instance is connected"}, 503)
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        data, content_type = self._exposition(request.headers.get("accept"))
        return Response(data, headers={"content-type": content_type})

    async def openapi(self, _: Request) -> Response:
        """This API, described."""
        return JSONResponse(document())
