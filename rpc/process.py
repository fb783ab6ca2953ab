"""A service as a plain process: its spec on the command line, its address on standard output."""

import argparse
import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from core.logs import LogFormat, begin_logging

Spec = TypeVar("Spec", contravariant=True)


class Service(Protocol[Spec]):
    """Serves until `stop` is set; calls `ready(address)` once it does."""

    def __call__(
        self, spec: Spec, *, stop: asyncio.Event, ready: Callable[[str], None]
    ) -> Awaitable[None]: ...


S = TypeVar("S")


def run_process(prog: str, parse: Callable[[str], S], service: Service[S]) -> None:
    """Serve until SIGTERM, SIGINT, a Drain call, or the end of standard input."""
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--spec-json", required=True, help="what its to_json writes")
    parser.add_argument("--log-level", default="WARNING")
    parser.add_argument("--log-format", default="text", choices=list(LogFormat))
    arguments = parser.parse_args()
    begin_logging(arguments.log_level, arguments.log_format)
    asyncio.run(_serve(parse(arguments.spec_json), service))


async def _serve(spec: S, service: Service[S]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # Refused for a file or /dev/null: nobody holds the other end of those.
    with suppress(PermissionError, ValueError):
        loop.add_reader(sys.stdin, _stop_at_end_of_input, stop)
    await service(spec, stop=stop, ready=_say_ready)


def _stop_at_end_of_input(stop: asyncio.Event) -> None:
    """Whoever started this process holds the other end: it closes with them, however they end."""
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin)
        stop.set()


def keep_what_is_loaded() -> None:
    """Take all objects of now out of every later garbage collection.

    For a process that serves from now on: what was imported and loaded stays for good, and looking
    through all of it takes 60 ms, in which the event loop stands still.
    """
    gc.collect()
    gc.freeze()


def _say_ready(address: str) -> None:
    keep_what_is_loaded()
    sys.stdout.write(json.dumps({"address": address}) + "\n")
    sys.stdout.flush()
