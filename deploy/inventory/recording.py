"""What NVML was asked and what it said, as JSON: to see another host's GPUs without having them."""

import ctypes
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deploy.inventory.nvml import Nvml

SCHEMA = 1
MAX_CALLS = 100_000
"""64 GPUs with all their links and pairs are asked a fifth of it."""
HANDLE_CALL = "nvmlDeviceGetHandleByIndex"


class Recorder:
    """NVML, with a list of all calls."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._handles: dict[int, tuple[Any, int]] = {}
        """By identity: the handle itself, so that it lives on, and which GPU it is of."""
        self.calls: list[dict[str, Any]] = []
        self.NVMLError = nvml.NVMLError

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: object) -> object:
            return self._called(name, args)

        call.__name__ = name
        return call

    def _called(self, name: str, args: Sequence[Any]) -> object:
        call: dict[str, Any] = {"call": name, "args": [self._plain_arg(arg) for arg in args]}
        if len(self.calls) < MAX_CALLS:
            self.calls.append(call)
        try:
            answer = getattr(self._nvml, name)(*args)
        except self.NVMLError as error:
            call["error"] = getattr(error, "value", None)
            raise
        if name == HANDLE_CALL:
            self._handles[id(answer)] = (answer, args[0])
            call["answer"] = {"gpu": args[0]}
        else:
            call["answer"] = plain(answer)
        return answer

    def _plain_arg(self, arg: Any) -> object:  # noqa: ANN401
        known = self._handles.get(id(arg))
        return plain(arg) if known is None else {"gpu": known[1]}

    def write(self, path: Path, about: str) -> None:
        """One call a line. Raises OSError."""
        head = f'{{"schema": {SCHEMA}, "about": {json.dumps(about)}, "calls": [\n'
        lines = ",\n".join(json.dumps(call) for call in self.calls)
        path.write_text(f"{head}{lines}\n]}}\n", encoding="utf-8")


def plain(answer: object) -> object:
    """Structures of C as objects, their arrays as lists, their texts as text."""
    if isinstance(answer, ctypes.Structure | ctypes.Union):
        names = [field[0] for field in getattr(answer, "_fields_", ())]
        return {name: plain(getattr(answer, name)) for name in names}
    if isinstance(answer, bytes):
        return answer.decode(errors="replace")
    if isinstance(answer, list | tuple | ctypes.Array):
        return [plain(each) for each in answer]
    if answer is None or isinstance(answer, str | int | float | bool):
        return answer
    return str(answer)
