"""Server-sent events (WHATWG HTML, 9.2.6), as much as a stream of JSON needs; no IO."""

from collections.abc import Iterator

from bench.load.errors import BadAnswer

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""Far above any token's; a server that sends no newline does not fill our memory."""


class SseReader:
    """Bytes, however they are cut, to the data of events."""

    def __init__(self) -> None:
        self._rest = b""
        self._data = list[bytes]()

    def feed(self, received: bytes) -> Iterator[bytes]:
        """The data of every event that `received` completes."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise BadAnswer(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        for line in lines:
            if (data := self._line(line.removesuffix(b"\r"))) is not None:
                yield data

    def _line(self, line: bytes) -> bytes | None:
        """What an event's end gives; other fields and comments give nothing."""
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif not line and self._data:
            data, self._data = b"\n".join(self._data), []
            return data
        return None
