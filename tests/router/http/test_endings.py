"""How HTTP answers end when something happens to them."""

import asyncio
import json
import socket

import grpc
import pytest

from core.config import RouterConfig
from tests.router.fake_model import expected
from tests.router.http.conftest import Answered, Json, OpenWeb, Web, words
from tests.router.script import BOUND_S, Gate

BODY: Json = {"prompt": [5, 6, 7], "max_tokens": 50, "seed": 3}
WANT = words(expected([5, 6, 7], 50, seed=3))


async def test_a_client_that_leaves_cancels(web: OpenWeb) -> None:
    for stream in (True, False):
        site = await web("pd")
        gate = site.on["d0"].script.token_gates[10] = Gate()
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(site.post("/v1/completions", BODY | {"stream": stream}))
            await gate.wait_reached()
            asking.cancel()
        await site.on["d0"].until(lambda instance: bool(instance.stops))
        gate.open.set()


async def test_an_error_before_the_first_token_has_its_own_status(web: OpenWeb) -> None:
    site = await web("p", config=RouterConfig(max_attempts=1))
    site.on["p0"].script.prefill_gate = Gate()
    body = BODY | {"stream": True}
    reply = await site.post("/v1/completions", body, x_baton_timeout_s="0.2")
    assert (reply.status, reply.error["code"]) == (504, "deadline_passed")


async def test_an_error_after_the_first_token_ends_the_stream(web: OpenWeb) -> None:
    site = await web("pd", config=RouterConfig(max_attempts=1))
    site.on["d0"].script.output_errors[10] = grpc.StatusCode.UNAVAILABLE.name
    reply = await site.post("/v1/completions", BODY | {"stream": True})
    assert reply.status == 200
    *events, last, rest = reply.body.decode().split("\n\n")
    assert rest == ""
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["code"] == "attempts_exhausted"
    assert error["request_id"] == reply.headers["x-request-id"]
    text = "".join(json.loads(e.removeprefix("data: "))["choices"][0]["text"] for e in events)
    assert WANT.startswith(text)


async def test_a_death_is_not_seen(web: OpenWeb) -> None:
    site = await web("pdd")
    gates = {name: Gate() for name in ("d0", "d1")}
    for name, gate in gates.items():
        site.on[name].script.token_gates[10] = gate
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(site.post("/v1/completions", BODY | {"stream": True}))
        dead = await _first_reached(gates)
        await site.on[dead].kill()
        for gate in gates.values():
            gate.open.set()
    text = "".join(chunk["choices"][0]["text"] for chunk in asking.result().chunks)
    assert text == WANT


async def _first_reached(gates: dict[str, Gate]) -> str:
    tasks = {asyncio.ensure_future(gate.wait_reached()): name for name, gate in gates.items()}
    done, late = await asyncio.wait(tasks, timeout=BOUND_S, return_when=asyncio.FIRST_COMPLETED)
    for task in late:
        task.cancel()
    return tasks[done.pop()]


async def test_drain_lets_answers_end(web: OpenWeb) -> None:
    site = await web("pd")
    gate = site.on["d0"].script.token_gates[10] = Gate()
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(site.post("/v1/completions", BODY))
        await gate.wait_reached()
        site.on.routers[0].stop.set()
        refused = await _until_draining(site)
        gate.open.set()
    assert refused.status == 503
    assert asking.result().json["choices"][0]["text"] == WANT


async def _until_draining(site: Web) -> Answered:
    async with asyncio.timeout(BOUND_S):
        while (reply := await site.get("/ready")).status == 200:
            pass
    assert reply.json == {"status": "draining"}
    return await site.post("/v1/completions", BODY)


async def test_a_slow_reader_is_ended(web: OpenWeb) -> None:
    config = RouterConfig(max_client_buffer_bytes=1024, client_stall_s=0.1)
    site = await web("pd", config=config)
    site.on["d0"].script.num_tokens_per_frame = 64
    body = json.dumps({"prompt": [1], "max_tokens": 4000, "stream": True, "logprobs": 20})
    with socket.socket() as mute:
        mute.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        mute.connect(_host_and_port(site))
        mute.sendall(_request(body))
        # As it is ended there, it is ended here: nothing of it was read.
        await site.on["d0"].until(lambda instance: bool(instance.stops))
    assert (await site.post("/v1/completions", BODY)).status == 200


def _host_and_port(site: Web) -> tuple[str, int]:
    host, port = site.on.routers[0].http_address.split(":")
    return host, int(port)


def _request(body: str) -> bytes:
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    return (head + body).encode()


async def test_a_head_without_end_is_ended(web: OpenWeb) -> None:
    site = await web("pd")
    reader, writer = await asyncio.open_connection(*_host_and_port(site))
    writer.write(b"GET /health HTTP/1.1\r\nx-long: ")
    async with asyncio.timeout(BOUND_S):
        # Its end shows as a broken pipe here, sooner or later.
        with pytest.raises(ConnectionError):
            await _write_for_ever(writer)
    writer.close()
    assert reader.at_eof() or reader.exception() is not None
    assert (await site.get("/health")).status == 200


async def _write_for_ever(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def test_several_requests_on_one_connection(web: OpenWeb) -> None:
    site = await web("pd")
    reader, writer = await asyncio.open_connection(*_host_and_port(site))
    writer.write(2 * b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    async with asyncio.timeout(BOUND_S):
        for _ in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(15) == b'{"status":"ok"}'
    writer.close()
    await writer.wait_closed()
