"""What a flow tells its shell to do, and what decode instances tell a flow."""

from dataclasses import dataclass

from core.errors import BatonError
from core.ids import InstanceId
from core.request import FinishReason, TokenLogprobs
from core.timing import HandoffTiming
from core.work import KvLostReason


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPrefill:
    """Open the Prefill stream of one attempt."""

    instance_id: InstanceId
    attempt: int
    output_token_ids: tuple[int, ...]
    only_first_token: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StartDecode:
    """Hand the request to a decode instance, which fetches from `source_id`."""

    instance_id: InstanceId
    attempt: int
    source_id: InstanceId
    output_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retarget:
    """Point a waiting decode at another prefill instance."""

    instance_id: InstanceId
    attempt: int
    source_id: InstanceId
    output_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StopDecode:
    """End this attempt and every earlier one on a decode instance."""

    instance_id: InstanceId
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelPrefill:
    """Cancel the Prefill stream of one attempt."""

    instance_id: InstanceId
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledge:
    """Tell a decode instance how far its tokens have arrived."""

    instance_id: InstanceId
    next_position: int
    done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliver:
    """Give new tokens to the client; positions follow each other without gaps."""

    position: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of `token_ids`, one by one; empty unless they were asked for."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The answer is complete; last action of a flow."""

    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Fail:
    """The answer will not be completed; last action of a flow."""

    error: BatonError


WorkerAction = StartPrefill | StartDecode | Retarget | StopDecode | CancelPrefill | Acknowledge
Action = WorkerAction | Deliver | Finish | Fail


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A decode instance's news of one request."""

    epoch: int
    attempt: int
    first_position: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    """As the worker sent them: the flow looks whether they are as many as they should be."""
    committed: bool = False
    kv_lost: KvLostReason | None = None
    finish_reason: FinishReason | None = None
    timing: HandoffTiming | None = None
    error: BatonError | None = None
    """The request ended badly there."""
