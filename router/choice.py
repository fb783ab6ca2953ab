"""One choice under way: feeds its flow with what happens and does what the flow says."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import grpc.aio

from core.clock import Clock
from core.errors import BatonError, NoInstance, PeerLost, Saturated
from core.ids import Fingerprint, InstanceId, RouterId
from core.request import Fence, Request
from policy.placement import Phase
from router.actions import (
    Acknowledge,
    Action,
    CancelPrefill,
    Deliver,
    Fail,
    Finish,
    Output,
    Retarget,
    StartDecode,
    StartPrefill,
    StopDecode,
)
from router.answer_text import AnswerText, Piece
from router.calls import WorkerCalls
from router.events import Delta, Finished
from router.flow import Flow
from router.link import InstanceLink
from router.membership import Membership
from router.output import ClientBuffer
from router.placer import Placer, Wanted
from router.timeline import Timeline

logger = logging.getLogger(__name__)
