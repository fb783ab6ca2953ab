"""What a test tells one scripted instance: where to stop and wait, where to fail."""

import asyncio
from dataclasses import dataclass, field

import grpc

BOUND_S = 10.0
"""Of every wait in these tests; reached only when something is broken."""


@dataclass(slots=True, eq=False)
class Gate:
    """A place where a script holds a worker, and sees it arrive."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    open: asyncio.Event = field(default_factory=asyncio.Event)

    async def pass_through(self) -> None:
        self.reached.set()
        await self.open.wait()

    async def wait_reached(self) -> None:
        async with asyncio.timeout(BOUND_S):
            await self.reached.wait()


@dataclass(frozen=True, slots=True)
class Poison:
    """What kills the process: a prompt that begins so, in its prefill or at a position."""

    token_id: int
    position: int | None = None
    """None: in its prefill."""


@dataclass(slots=True, eq=False)
class Script:
    """What one instance does differently."""

    prefill_gate: Gate | None = None
    """Before the first token is sampled."""
    fetch_gate: Gate | None = None
    """Before decode has fetched the KV."""
    token_gates: dict[int, Gate] = field(default_factory=dict)
    """Before the token of a position is decoded."""
    prefill_error: grpc.StatusCode | None = None
    decode_error: grpc.StatusCode | None = None
    output_errors: dict[int, str] = field(default_factory=dict)
    """Position → status with which decode ends the request, once."""
    kv_lost: int = 0
    """So many handoffs lose their KV."""
    poison: Poison | None = None
    mute: bool = False
    """No frame, no beat."""
    deaf: bool = False
    """Asked how it is, it does not answer."""
    prefill_compute_s: float = 0.002
    """What it says that a prompt took."""
    num_tokens_per_frame: int = 1
