"""The receiving half of one Fetch stream: credits, verified segments, commit."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from core.errors import IllegalTransition, InvalidRequest
from core.handoff import SinkState
from core.kv_layout import STORED
from core.request import Fence
from core.work import KvLostReason
from kv_transfer.carriers.contract import CarrierUnusable, Inlet
from kv_transfer.carriers.inline import InlineInlet
from kv_transfer.errors import KvLost
from kv_transfer.frames import Arrived, Expected, check_announce, result_of
from kv_transfer.kv_host import KvHost
from kv_transfer.landing import Landing
from kv_transfer.outgoing import Outgoing
from kv_transfer.result import FetchResult
from kv_transfer.sink import Sink
from kv_transfer.wire_format import wire_format
from rpc.codec import Undecodable
from rpc.kv_wire import FetchCall, FetchFrame
from rpc.pb import kv_transfer_pb2 as pb


@dataclass(slots=True, kw_only=True)
class Receiver:
    """Walks one sink through one attempt. All but the scatters runs on the event loop's thread."""

    sink: Sink
    expected: Expected
    call: FetchCall
    source_id: str
    """Who sends, for the log."""
    source_address: str
    """Where `call` goes."""
    reserve: Callable[[Sink], Awaitable[None]]
    renew: Callable[[float], Awaitable[None]]
    """Keeps the lease alive, given its time, until cancelled. Raises KvLost."""
    host: KvHost
    attempt: Fence = field(init=False)
    _committed: "asyncio.Future[FetchResult]" = field(init=False)
    _outgoing: Outgoing = field(init=False)
    _inlet: Inlet = field(default_factory=InlineInlet)
    _landing: Landing | None = None
    """Once announced."""
    _arrived: Arrived = field(default_factory=Arrived)
    _end: pb.FetchEnd | None = None

    def __post_init__(self) -> None:
        self.attempt = self.sink.fence
        self._committed = asyncio.get_running_loop().create_future()
        self._outgoing = Outgoing(self.call)

    async def run(self, opening: pb.FetchOpen) -> FetchResult:
        """Receive and commit. Raises KvLost, what `reserve` raises, grpc's errors; in groups."""
        self._outgoing.put(pb.FetchRequest(open=opening))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = (
                    group.create_task(self._outgoing.run()),
                    group.create_task(self._receive()),
                )
                result = await self._committed
                for task in tasks:
                    task.cancel()
            return result
        finally:
            self._committed.cancel()
            try:
                if self._landing is not None:
                    await self._landing.ended()
            finally:
                self._inlet.close()

    async def _receive(self) -> None:
        announce = await self._announced()
        await self._attach(announce)
        landing = self._landing = self._landing_of()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._grant())
            renewing = group.create_task(self._renewed(announce.lease_ttl_s))
            while self._end is None or await landing.misses_any():
                await self._take(await self._read(), landing)
            # All is here but for copies under way: from now on the source may die.
            renewing.cancel()

    async def _renewed(self, lease_ttl_s: float) -> None:
        await self.renew(lease_ttl_s)

    async def _announced(self) -> pb.Announce:
        """The first frame but for beats: the prefill may queue as long as the request may."""
        frame = await self._read()
        while frame.message.WhichOneof("message") is None:
            frame = await self._read()
        announce = check_announce(frame.message, self.expected)
        self._check_attempt()
        self.sink.announce(announce.num_tokens)
        self._arrived.announced_at_s = self.host.clock.now_s()
        return announce

    async def _attach(self, announce: pb.Announce) -> None:
        """Reach the announced carrier, or ask for inline payloads, before any credit."""
        try:
            inlet = self.host.carriers.inlet(announce.carrier, self.source_address)
            try:
                async with asyncio.timeout(self.host.config.progress_timeout_s):
                    await inlet.attach(announce)
            except BaseException:
                inlet.close()
                raise
        except (CarrierUnusable, TimeoutError) as error:
            reason = str(error) or f"not reached in {self.host.config.progress_timeout_s} s"
            self.host.carriers.note_fallback(self.source_id, announce.carrier, reason)
            fallback = pb.Fallback(reason=reason[:256])
            self._outgoing.put(pb.FetchRequest(fallback=fallback))
        else:
            self._inlet = inlet

    def _landing_of(self) -> Landing:
        return Landing(
            sink=self.sink,
            attempt=self.attempt,
            inlet=self._inlet,
            store=self.host.store,
            wire=wire_format(self.expected.wire_format, self.sink.layout),
            copies=self.host.copies,
            refetch=self._refetch,
            emptied=self._outgoing.emptied,
            landed=self._landed,
            failpoints=self.host.failpoints,
        )

    async def _grant(self) -> None:
        """Credit as room is made, until the whole prompt has blocks."""
        credit, sink = 0, self.sink
        while credit < sink.num_tokens:
            self._check_attempt()
            if sink.num_missing_blocks or not sink.can_reserve:
                await self.reserve(sink)
            else:
                # Retargeted: the blocks are here already.
                sink.reserve(())
            self._check_attempt()
            before, room = credit, len(sink.block_ids) * sink.layout.block_size
            credit = min(sink.num_tokens, room)
            if credit <= before or sink.state is not SinkState.RECEIVING:
                raise IllegalTransition(f"{sink.handoff_id}: reserve() made no room")
            self._arrived.credited(self.host.clock.now_s())
            granted = pb.Credit(num_tokens=credit, num_cached_tokens=sink.num_cached_tokens)
            self._outgoing.put(pb.FetchRequest(credit=granted))

    async def _read(self) -> FetchFrame:
        limit_s = self.host.config.progress_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                frame = await self.call.read()
        except TimeoutError:
            raise KvLost(KvLostReason.STALLED, f"no frame in {limit_s} s") from None
        if isinstance(frame, Undecodable):
            raise KvLost(KvLostReason.CORRUPT, str(frame.error))
        if not isinstance(frame, FetchFrame):
            raise KvLost(KvLostReason.LEASE, "the source closed the stream early")
        return frame

    async def _take(self, frame: FetchFrame, landing: Landing) -> None:
        self._check_attempt()
        kind = frame.message.WhichOneof("message")
        if kind == "segment":
            await self._take_segment(frame, landing)
        elif kind == "end" and self._end is None:
            await self.host.failpoints.hit("kv.commit")
            self._end = end = frame.message.end
            self._arrived.last_at_s = self.host.clock.now_s()
            # Checked before anything rests on it: a commit cannot be taken back.
            self._result(end)
            self.sink.end(self.attempt, end.digest)
            self._settle()
        # Else a beat, which has done its work by arriving, or a repetition.

    async def _take_segment(self, frame: FetchFrame, landing: Landing) -> None:
        header = frame.message.segment
        limit_s = self.host.config.progress_timeout_s
        failpoints = self.host.failpoints
        await failpoints.hit("kv.receive.segment")
        self._arrived.add(header.num_bytes, self.host.clock.now_s())
        try:
            async with asyncio.timeout(limit_s):
                for payload in failpoints.pass_bytes("kv.receive.segment", frame.payload):
                    await landing.take(header, memoryview(payload))
        except TimeoutError:
            raise KvLost(KvLostReason.STALLED, f"no payload in {limit_s} s") from None

    def _check_attempt(self) -> None:
        if self.sink.fence != self.attempt or self.sink.state is SinkState.ENDED:
            raise KvLost(KvLostReason.LEASE, f"{self.attempt} ended while its stream was open")

    def _refetch(self, index: int) -> None:
        if self.sink.corrupt(self.attempt):
            self._outgoing.put(pb.FetchRequest(refetch=pb.Refetch(index=index)))
        elif self.sink.fence == self.attempt:
            limit = self.host.config.max_refetches
            self._fail(KvLost(KvLostReason.CORRUPT, f"more than {limit} segments were damaged"))

    def _landed(self, error: BaseException | None) -> None:
        if error is not None:
            self._fail(error)
        else:
            self._settle()

    def _settle(self) -> None:
        """Commit when everything is here, at once: after a wait it could be another attempt's."""
        if self._end is None or self._landing is None or not self._landing.is_quiet:
            return
        if self._committed.done() or self.sink.state is not SinkState.RECEIVING:
            return
        if self.sink.fence != self.attempt:
            return
        if not self.sink.is_whole:
            self._fail(KvLost(KvLostReason.CORRUPT, "segments are missing at the end"))
        elif not self.sink.commit():
            self.sink.lost_at_s = self.host.clock.now_s()
            self._fail(KvLost(KvLostReason.CORRUPT, "the digest of the whole is wrong"))
        else:
            self._committed.set_result(self._result(self._end))

    def _result(self, end: pb.FetchEnd) -> FetchResult:
        make = partial(result_of, end, self._arrived, committed_at_s=self.host.clock.now_s())
        try:
            return make(
                carrier=self._inlet.carrier,
                sink=self.sink,
                is_exact=self.expected.wire_format == STORED,
            )
        except InvalidRequest as error:
            raise KvLost(KvLostReason.CORRUPT, str(error)) from None

    def _fail(self, error: BaseException) -> None:
        if not self._committed.done():
            self._committed.set_exception(error)
