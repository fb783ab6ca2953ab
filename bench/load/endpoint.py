"""What is measured: an address, and how it is talked to."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from bench.load.grpc_target import GrpcTarget
from bench.load.http_target import HttpTarget, find_model, http_session
from bench.load.offer import Target
from bench.load.openai import PATHS, Dialect
from router.client import AsyncClient


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One of `url` and `grpc`."""

    url: str = ""
    """Of an OpenAI-compatible server: http://host:port/v1."""
    grpc: tuple[str, ...] = ()
    """host:port of each router of a Baton cluster."""
    model: str = ""
    """Empty: the first one that the server names."""
    api: str = "completions"
    prompt: str = "tokens"
    """Of what: tokens or text."""
    ignore_eos: bool = True
    usage_per_chunk: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        if bool(self.url) == bool(self.grpc):
            yield "one of --url and --grpc is needed: whom to send requests to"
        if self.url and not self.url.startswith(("http://", "https://")):
            yield f"--url must begin with http:// or https://, got {self.url!r}"
        if self.prompt not in ("tokens", "text"):
            yield f"--prompt must be tokens or text, got {self.prompt!r}"
        if self.grpc and (self.prompt, self.api) != ("tokens", "completions"):
            yield "--grpc takes token ids: --prompt and --api are for --url"
        if self.api not in PATHS:
            yield f"--api must be {' or '.join(PATHS)}, got {self.api!r}"

    @property
    def name(self) -> str:
        """For people."""
        return self.url or ", ".join(self.grpc)


@asynccontextmanager
async def open_target(endpoint: Endpoint, timeout_s: float) -> AsyncIterator[Target]:
    """Connected when first asked; closed with the block."""
    async with AsyncExitStack() as stack:
        if endpoint.grpc:
            client = await stack.enter_async_context(AsyncClient(endpoint.grpc))
            yield GrpcTarget(
                [client],
                timeout_s=timeout_s,
                model=endpoint.model,
                ignore_eos=endpoint.ignore_eos,
            )
            return
        url = endpoint.url.rstrip("/")
        session = await stack.enter_async_context(http_session(endpoint.headers))
        dialect = Dialect(
            model=endpoint.model or await find_model(session, url),
            api=endpoint.api,
            is_text=endpoint.prompt == "text",
            ignore_eos=endpoint.ignore_eos,
            usage_per_chunk=endpoint.usage_per_chunk,
        )
        yield HttpTarget(session, url, dialect)
