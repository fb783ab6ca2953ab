"""What goes wrong between the ranks of one instance."""

from core.errors import BatonError


class RankLost(BatonError):
    """A rank died or stopped answering: its instance has lost that part of the model and ends."""

    status = "UNAVAILABLE"
    retryable = True


class FrameError(BatonError):
    """Bytes between ranks that are no message of this version: a bug of ours."""


class ChannelClosed(BatonError):
    """The process at the other end of a control channel is gone."""

    status = "UNAVAILABLE"


class ChannelStalled(BatonError):
    """The process at the other end took or sent nothing within the bound."""

    status = "UNAVAILABLE"


class GroupBroken(BatonError):
    """A collective failed: another rank died, or did not come within the bound."""

    status = "UNAVAILABLE"
