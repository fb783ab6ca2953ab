"""Why a request of a load had no answer, beyond what core.errors knows."""

from core.errors import BatonError


class InFlightLimit(BatonError):
    """Too many requests had not ended: this one was due and was not sent."""

    status = "RESOURCE_EXHAUSTED"


class HttpRefused(BatonError):
    """The server answered with an HTTP status other than 200."""

    status = "UNAVAILABLE"

    def __init__(self, http_status: int, message: str) -> None:
        super().__init__(f"HTTP status {http_status}: {message}")
        self.http_status = http_status

    @property
    def reason(self) -> str:
        """Statuses are counted apart: 429 is a full server, 500 a broken one."""
        return f"HTTP_{self.http_status}"


class AnswerFailed(BatonError):
    """The stream began and then told an error."""

    status = "UNAVAILABLE"


class BadAnswer(BatonError):
    """The server sent what is no answer."""

    status = "INTERNAL"
