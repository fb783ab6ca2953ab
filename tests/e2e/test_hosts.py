"""The hosts of other tests: actors are on them, know where they are, and reach each other."""

import importlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from core.clock import MonotonicClock
from deploy.local_ray.processes import exists, session_of
from deploy.ray_runtime import joined_ray
from tests.e2e import hosts as hosts_module
from tests.e2e.hosts import Hosts, HostSpec, Network, hosts

pytestmark = pytest.mark.ray

CALL_TIMEOUT_S = 60.0
SPECS = [
    HostSpec(num_cpus=1),
    HostSpec(num_cpus=2, resources={"prefill_host": 1}),
    HostSpec(num_cpus=2, resources={"decode_host": 1}),
]


def listener(ray: Any) -> Any:  # noqa: ANN401 - Ray's
    """An actor class whose actors listen where they are, and call each other."""

    class Listener:
        def ip(self) -> str:
            return str(importlib.import_module("ray").util.get_node_ip_address())

        def listen(self, ip: str) -> int:
            self._server = socket.create_server((ip, 0))
            port: int = self._server.getsockname()[1]
            return port

        def reaches(self, ip: str, port: int) -> bool:
            with socket.socket() as client:
                client.settimeout(5.0)
                return client.connect_ex((ip, port)) == 0

        def pid(self) -> int:
            return os.getpid()

    return ray.remote(num_cpus=1, max_restarts=0)(Listener)


@pytest.fixture(params=["namespaces", "loopback"])
def three_hosts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    if request.param == "loopback":
        monkeypatch.setattr(hosts_module, "namespaces", no_namespaces)
    clock = MonotonicClock()
    asked_at_s = clock.now_s()
    with hosts(SPECS) as started:
        print(f"\n{len(SPECS)} hosts up in {clock.now_s() - asked_at_s:.1f} s")
        yield started
        stopped_at_s = clock.now_s()
    print(f"gone in {clock.now_s() - stopped_at_s:.1f} s")
    assert [pid for session in started.sessions for pid in session_of(session) if exists(pid)] == []


@contextmanager
def no_namespaces(num_hosts: int) -> Iterator[Network]:
    raise PermissionError("not tried")
    yield


def test_actors_are_on_their_hosts_and_reach_each_other(
    three_hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with joined_ray(three_hosts.address, three_hosts.token, "baton.test") as ray:
        placed = [
            listener(ray).options(resources={name: 0.1}).remote()
            for name in ("prefill_host", "decode_host")
        ]
        ips = ray.get([actor.ip.remote() for actor in placed], timeout=CALL_TIMEOUT_S)
        assert ips == three_hosts.ips[1:]
        first, second = placed
        port = ray.get(first.listen.remote(ips[0]), timeout=CALL_TIMEOUT_S)
        assert ray.get(second.reaches.remote(ips[0], port), timeout=CALL_TIMEOUT_S)

        pid = ray.get(first.pid.remote(), timeout=CALL_TIMEOUT_S)
        three_hosts.kill(1)
        assert not exists(pid)
        with pytest.raises(ray.exceptions.RayError):
            ray.get(first.pid.remote(), timeout=CALL_TIMEOUT_S)
        assert ray.get(second.ip.remote(), timeout=CALL_TIMEOUT_S) == ips[1]

    # As a user comes in, by what his shell says.
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", three_hosts.token)
    with joined_ray(three_hosts.address, None, "baton.test") as ray:
        assert "decode_host" in ray.cluster_resources()
