"""The router's link to one instance: liveness, tokens in, acknowledgements out."""

import asyncio
import logging
import math
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

import grpc.aio

from core.errors import BatonError, InvalidRequest, PeerLost
from core.ids import HandoffId, InstanceId, RouterId
from core.member import Member
from core.request import Fence
from core.waiting import wait_at_most
from core.work import PROTOCOL_VERSION
from router.acks import AckBook
from router.actions import Output
from router.stops import Stops
from router.view import Sight
from router.wire import output_from_pb
from rpc.convert_report import load_from_pb
from rpc.dial import dial
from rpc.pb import cluster_pb2, cluster_pb2_grpc, workers_pb2, workers_pb2_grpc
from rpc.status import error_from

logger = logging.getLogger(__name__)

ACK_DELAY_S = 0.05
"""Acknowledgements wait this long for others: 20 messages a second at most, however many tokens."""
FIRST_RETRY_S = 0.1
MAX_RETRY_S = 2.0
"""Between two tries to reach a lost instance."""
RESUBSCRIBE_S = 0.02
"""Before a broken stream is tried again: at once for people, no spinning for processors."""
PROVE_S = 1.0
"""To connect and to show a first frame, which a worker sends at once. Local networks need
milliseconds; this is for an interpreter that is busy."""
PROOF_TIMEOUT_S = 0.5
"""Of a call that any living instance answers within milliseconds."""


class Health(StrEnum):
    """How the subscription stands."""

    NEW = "new"
    """No frame yet."""
    UP = "up"
    SUSPECT = "suspect"
    """The stream broke a moment ago; nothing new is placed there."""
    LOST = "lost"


class Silent(PeerLost):
    """Nothing comes, not even a beat or a refusal: the process may live."""


class Reader(Protocol):
    """One choice, as the links see it."""

    def on_output(self, instance_id: InstanceId, output: Output) -> None:
        """News of it."""
        ...

    def on_lost(self, instance_id: InstanceId, error: BatonError) -> None:
        """The instance is gone."""
        ...


class InstanceLink:
    """One channel, one subscription, and the choices that use the instance."""

    def __init__(
        self,
        member: Member,
        router_id: RouterId,
        *,
        silence_s: float,
        sight: Sight,
        on_change: Callable[[], None],
        on_lost: "Callable[[InstanceLink, BatonError], None]",
    ) -> None:
        self.member = member
        self.sight = sight
        """Where it is seen by placement."""
        self.health = Health.NEW
        self.channel = dial(member.leader_address)
        self.prefill_worker = workers_pb2_grpc.PrefillWorkerStub(self.channel)
        self.decode_worker = workers_pb2_grpc.DecodeWorkerStub(self.channel)
        self.cluster = cluster_pb2_grpc.ClusterStub(self.channel)
        self.proven_at_s = -math.inf
        """When the last call began that it answered to show that it lives."""
        self._asked_at_s = -math.inf
        """When the last one began, answered or not."""
        self._proving = asyncio.Lock()
        self._router_id = router_id
        self._silence_s = silence_s
        self._on_change = on_change
        self._on_lost = on_lost
        self._readers: dict[HandoffId, Reader] = {}
        self._acks = AckBook()
        self._stops = Stops(self.decode_worker)

    @property
    def is_idle(self) -> bool:
        """No choice uses it."""
        return not self._readers

    async def run(self) -> None:
        """Stay subscribed until cancelled; then all who use it are told."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._stops.run())
                await self._stay_subscribed()
        finally:
            if self.health is not Health.LOST:
                self._lose(PeerLost(f"{self.member.instance_id} left"))
            await self.channel.close()

    def attach(self, handoff_id: HandoffId, reader: Reader) -> None:
        """Route this handoff's news to `reader`, and tell it when the instance is lost."""
        self._readers[handoff_id] = reader
        self._acks.open(handoff_id)

    def detach(self, handoff_id: HandoffId, reader: Reader) -> None:
        """Undo `attach`, unless another has attached since."""
        if self._readers.get(handoff_id) is reader:
            del self._readers[handoff_id]
            self._acks.close(handoff_id)

    def acknowledge(self, handoff_id: HandoffId, next_position: int, *, done: bool) -> None:
        """Tell the instance, soon, how far its tokens have arrived."""
        self._acks.note(handoff_id, next_position, done=done)

    def stop(self, handoff_id: HandoffId, fence: Fence) -> None:
        """Tell the instance, with retries, to end this attempt and every earlier one."""
        # A lost instance learns it from what the next subscription does not name.
        if self.health is not Health.LOST:
            self._stops.add(handoff_id, fence)

    async def prove(self, since_s: float) -> bool:
        """Whether it lived at `since_s` or later; those who ask at once share one call."""
        async with self._proving:
            # A failure is shared too: a frozen instance must not be waited for once by each.
            if self._asked_at_s < since_s and self.health is not Health.LOST:
                began_at_s = self.sight.clock.now_s()
                if await self._answers():
                    self.proven_at_s = began_at_s
                self._asked_at_s = began_at_s
        return self.proven_at_s >= since_s

    async def _answers(self) -> bool:
        call = self.cluster.Status(cluster_pb2.StatusRequest(), timeout=PROOF_TIMEOUT_S)
        try:
            # Awaiting the call itself would look as if we were cancelled when the link ends.
            return await call.code() is grpc.StatusCode.OK
        finally:
            call.cancel()

    async def _stay_subscribed(self) -> None:
        retry_s = 0.0
        while True:
            was_up = await self._subscribe()
            # A broken stream is tried again at once, and only once before the loss is told: the
            # process may live, but whoever waits for it must not wait long.
            backoff_s = min(max(FIRST_RETRY_S, 2 * retry_s), MAX_RETRY_S)
            retry_s = RESUBSCRIBE_S if was_up else backoff_s
            await asyncio.sleep(retry_s)

    async def _subscribe(self) -> bool:
        """One stream from first to last frame; whether there was any."""
        call = self.decode_worker.Subscribe()
        error: BatonError = PeerLost(f"{self.member.instance_id}: subscription ended")
        try:
            async with asyncio.timeout(PROVE_S):
                await call.write(self._first_message())
            error = await self._serve_stream(call)
        except TimeoutError:
            error = Silent(f"{self.member.instance_id}: no connection in {PROVE_S:g} s")
        except grpc.aio.AioRpcError as failure:
            error = error_from(failure)
        except asyncio.InvalidStateError:
            error = await _error_of(call)
        finally:
            call.cancel()
        was_up = self.health is Health.UP
        self._break(error)
        return was_up

    def _first_message(self) -> workers_pb2.SubscribeRequest:
        return workers_pb2.SubscribeRequest(
            router_id=self._router_id,
            protocol_version=PROTOCOL_VERSION,
            acks=self._acks.take_all(),
            wants_kv_events=True,
        )

    async def _serve_stream(self, call: "Subscription") -> BatonError:
        async with asyncio.TaskGroup() as group:
            writer = group.create_task(self._write_acks(call))
            error = await self._read(call)
            writer.cancel()
        return error

    async def _read(self, call: "Subscription") -> BatonError:
        """Take frames until there are no more; why."""
        name = self.member.instance_id
        patience_s = PROVE_S
        try:
            while True:
                async with asyncio.timeout(patience_s):
                    frame = await call.read()
                patience_s = self._silence_s
                if not isinstance(frame, workers_pb2.TokenFrame):
                    return PeerLost(f"{name}: subscription ended")
                self._take(frame)
        except TimeoutError:
            return Silent(f"{name}: no frame for {patience_s:g} s")
        except grpc.aio.AioRpcError as failure:
            return error_from(failure)
        except InvalidRequest as error:
            return error

    async def _write_acks(self, call: "Subscription") -> None:
        try:
            while True:
                await self._acks.any.wait()
                # For company: many are one message.
                await wait_at_most(self._acks.many, ACK_DELAY_S)
                await call.write(workers_pb2.SubscribeRequest(acks=self._acks.take()))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the stream broke: reading says why

    def _take(self, frame: workers_pb2.TokenFrame) -> None:
        if frame.HasField("load"):
            was_draining, load = self.sight.load.draining, load_from_pb(frame.load)
            self.sight.report(load, sum(bool(output.token_ids) for output in frame.outputs))
            if was_draining != load.draining:
                self._on_change()
        if frame.HasField("kv_events"):
            news = frame.kv_events
            self.sight.cached(
                is_snapshot=news.is_snapshot, stored=news.stored, removed=news.removed
            )
        if self.health is not Health.UP:
            self._turn(Health.UP, "")
        for message in frame.outputs:
            handoff_id = HandoffId(message.handoff_id)
            output = output_from_pb(message)
            if (reader := self._readers.get(handoff_id)) is not None:
                reader.on_output(self.member.instance_id, output)
            else:
                self._stray(handoff_id, output)

    def _stray(self, handoff_id: HandoffId, output: Output) -> None:
        """News that nobody here reads any more."""
        if output.finish_reason is not None or output.error is not None:
            self._acks.note(handoff_id, 0, done=True)
        else:
            self._stops.add(handoff_id, Fence(output.epoch, output.attempt))

    def _break(self, error: BatonError) -> None:
        self.sight.is_mute()
        if self.health is Health.UP and not isinstance(error, Silent):
            self._turn(Health.SUSPECT, str(error))
        elif self.health is not Health.LOST:
            self._lose(error)

    def _lose(self, error: BatonError) -> None:
        self._turn(Health.LOST, str(error))
        self._stops.clear()
        name = self.member.instance_id
        readers, self._readers = self._readers, {}
        self._acks = AckBook()
        # Before anybody is placed anew because of it.
        self._on_lost(self, error)
        for reader in readers.values():
            reader.on_lost(name, PeerLost(f"{name} lost: {error}"))

    def _turn(self, health: Health, why: str) -> None:
        name = self.member.instance_id
        logger.info("link %s instance_id=%s was=%s %s", health.value, name, self.health.value, why)
        self.health = health
        self.sight.turn(alive=health is Health.UP)
        self._on_change()


Subscription = grpc.aio.StreamStreamCall[workers_pb2.SubscribeRequest, workers_pb2.TokenFrame]


async def _error_of(call: Subscription) -> BatonError:
    """Why a call ended that refuses further writes."""
    code, details = await call.code(), await call.details()
    return PeerLost(f"{code.name.lower()}: {details}")
