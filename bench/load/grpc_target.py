"""Baton's own gRPC service as a target."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from itertools import cycle

from bench.load.offer import Arrival, Ask
from bench.load.outcome import Event, Tokens
from router.client import AsyncClient
from router.events import Delta


class GrpcTarget:
    """Implements Target; asks clients in turn."""

    def __init__(
        self,
        clients: Sequence[AsyncClient],
        *,
        timeout_s: float,
        model: str = "",
        ignore_eos: bool = True,
    ) -> None:
        self._clients = cycle(clients)
        self._timeout_s = timeout_s
        self._model = model
        self._ignore_eos = ignore_eos

    def prepare(self, arrival: Arrival) -> Ask:
        """Only whose turn it is: the client makes its message when it is asked."""
        return partial(self._ask, next(self._clients), arrival)

    async def _ask(self, client: AsyncClient, arrival: Arrival) -> AsyncGenerator[Event, None]:
        answer = client.generate(
            token_ids=arrival.token_ids,
            model=self._model,
            max_tokens=arrival.max_tokens,
            temperature=0.0,
            ignore_eos=self._ignore_eos,
            timeout_s=self._timeout_s,
            tenant=arrival.tenant,
        )
        async with aclosing(answer) as events:
            async for event in events:
                # Text may follow its tokens in a message of its own.
                if isinstance(event, Delta) and event.token_ids:
                    yield Tokens(len(event.token_ids))
