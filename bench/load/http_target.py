"""Any server that speaks OpenAI's HTTP protocol, as a target."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

import aiohttp

from bench.load.errors import BadAnswer, HttpRefused
from bench.load.offer import Arrival, Ask
from bench.load.openai import PATHS, Dialect, StreamReader
from bench.load.outcome import Event
from core.errors import PeerLost, UnknownModel

MODELS_TIMEOUT_S = 10.0
"""A list of names, from a server that may be busy."""
KEEPALIVE_S = 2.0
"""Below every server's own (uvicorn's is 5 s): a connection that the server closes just as we use
it would be counted as a failed request."""
MAX_REFUSAL_BYTES = 2000


@asynccontextmanager
async def http_session(headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientSession]:
    """As many connections as there are requests in flight; the load generator bounds those."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
        headers=headers,
        # Every request is inside a bound of the load generator's.
        timeout=aiohttp.ClientTimeout(total=None),
    ) as session:
        yield session


async def find_model(session: aiohttp.ClientSession, url: str) -> str:
    """The first that the server lists."""
    timeout = aiohttp.ClientTimeout(total=MODELS_TIMEOUT_S)
    try:
        async with session.get(f"{url}/models", timeout=timeout) as response:
            await _check(response)
            listed = await response.json(content_type=None)
            return str(listed["data"][0]["id"])
    except (aiohttp.ClientError, TimeoutError) as error:
        raise PeerLost(f"{url}/models: {_text(error)}") from None
    except (KeyError, IndexError, TypeError, ValueError):
        raise UnknownModel(f"{url}/models names no model: give --model") from None


class HttpTarget:
    """Implements Target."""

    def __init__(self, session: aiohttp.ClientSession, url: str, dialect: Dialect) -> None:
        """`url` ends with /v1, or whatever stands there."""
        self._session = session
        self._url = url + PATHS[dialect.api]
        self._dialect = dialect

    def prepare(self, arrival: Arrival) -> Ask:
        """The bytes to send."""
        return partial(self._ask, json.dumps(self._dialect.body(arrival)).encode())

    async def _ask(self, body: bytes) -> AsyncGenerator[Event, None]:
        reader = StreamReader()
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(self._url, data=body, headers=headers) as response:
                await _check(response)
                async for received in response.content.iter_any():
                    for event in reader.feed(received):
                        yield event
        except aiohttp.ClientError as error:
            raise PeerLost(f"{self._url}: {_text(error)}") from error
        reader.end()


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        said = await response.content.read(MAX_REFUSAL_BYTES)
        raise HttpRefused(response.status, said.decode(errors="replace").strip())
    if not response.content_type.endswith(("event-stream", "json")):
        raise BadAnswer(f"{response.url} answers with {response.content_type}, no stream of events")


def _text(error: Exception) -> str:
    """Some of these have no words."""
    return str(error) or type(error).__name__
