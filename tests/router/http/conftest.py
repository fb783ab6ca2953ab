"""A plain HTTP client of a router over scripted instances."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from core.config import RouterConfig
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import cluster_pb2, cluster_pb2_grpc
from tests.router.conftest import OpenStage, Stage
from tests.router.script import BOUND_S

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answered:
    """One reply."""

    status: int
    headers: "dict[str, str]"
    body: bytes

    @property
    def json(self) -> Json:
        return dict(json.loads(self.body))

    @property
    def error(self) -> Json:
        return dict(self.json["error"])

    @property
    def chunks(self) -> list[Json]:
        """Of a stream, without the word that ends it."""
        *events, done, rest = self.body.decode().split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]


@dataclass(slots=True)
class Web:
    """Talks HTTP to the first router of a stage."""

    on: Stage
    session: aiohttp.ClientSession

    def url(self, path: str) -> str:
        return f"http://{self.on.routers[0].http_address}{path}"

    async def until_queued(self, num: int) -> None:
        """So many requests wait for admission."""
        address = self.on.routers[0].address
        async with dial(address, plane=Plane.CLIENT) as channel, asyncio.timeout(BOUND_S):
            stub = cluster_pb2_grpc.ClusterStub(channel)
            while (await stub.Status(cluster_pb2.StatusRequest())).num_queued != num:
                pass

    async def post(self, path: str, body: object, **headers: str) -> Answered:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.ask("POST", path, data=data, headers=headers)

    async def get(self, path: str, **headers: str) -> Answered:
        return await self.ask("GET", path, headers=headers)

    async def ask(self, method: str, path: str, **how: Any) -> Answered:
        how["headers"] = {k.replace("_", "-"): v for k, v in how.get("headers", {}).items()}
        async with self.session.request(method, self.url(path), **how) as reply:
            headers = {name.lower(): value for name, value in reply.headers.items()}
            return Answered(reply.status, headers, await reply.read())


OpenWeb = Callable[..., Awaitable[Web]]


@pytest.fixture
async def web(stage: OpenStage) -> AsyncIterator[OpenWeb]:
    """Call it with the roles of the instances."""
    async with AsyncExitStack() as stack:

        async def open_web(roles: str = "pd", *, config: RouterConfig | None = None) -> Web:
            on = await stage(roles, config=config)
            timeout = aiohttp.ClientTimeout(total=BOUND_S)
            session = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
            return Web(on, session)

        yield open_web


def words(token_ids: Sequence[int]) -> str:
    """The text of the scripted model's tokens."""
    return " ".join(f"w{token_id}" for token_id in token_ids)
