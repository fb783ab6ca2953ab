"""Plays what was recorded of an NVML: the same calls get the same answers, any other one fails."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml

from deploy.inventory.recording import SCHEMA

DATA = Path(__file__).parent / "data"


class Player:
    """Stands in for the module pynvml."""

    NVMLError = pynvml.NVMLError

    def __init__(self, path: Path) -> None:
        document = json.loads(path.read_text(encoding="utf-8"))
        assert document["schema"] == SCHEMA
        self.about: str = document["about"]
        self._calls = {self._key(each["call"], each["args"]): each for each in document["calls"]}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args: self._called(name, args)

    def _called(self, name: str, args: tuple[object, ...]) -> object:
        plain = [vars(arg) if isinstance(arg, SimpleNamespace) else arg for arg in args]
        call = self._calls[self._key(name, plain)]
        if "error" in call:
            raise pynvml.NVMLError(call["error"])
        return _answer(call["answer"])

    @staticmethod
    def _key(name: str, args: list[object]) -> str:
        return json.dumps([name, args])


def _answer(plain: object) -> object:
    """Objects have their fields as attributes, as structures of C do."""
    if isinstance(plain, dict):
        return SimpleNamespace(**{name: _answer(value) for name, value in plain.items()})
    return [_answer(each) for each in plain] if isinstance(plain, list) else plain
