"""Several hosts on one machine: a Ray made by `ray start`, as the manual tells people to.

Where allowed each host but the head's is a network namespace, and all hang on one bridge: what
listens on loopback there is out of the others' reach, as between machines. Elsewhere each host is
an address of loopback. The head's host is this machine itself, because the driver is there.
"""

import asyncio
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from deploy.local_ray.processes import end_session
from deploy.ray_runtime import OBJECT_STORE_BYTES

RAY = Path(sys.executable).parent / "ray"
START_TIMEOUT_S = 120.0
"""Of one host: took 4 to 7 s on two idle cores."""
IP_TIMEOUT_S = 10.0
FIRST_WORKER_PORT = 20000
NUM_WORKER_PORTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpec:
    """What a host says it has; nothing of it need be there."""

    num_cpus: int = 1
    resources: Mapping[str, float] = field(default_factory=dict)


class Network(Protocol):
    """Where the hosts are; the head's is number 0."""

    def ip(self, host: int) -> str:
        """Its address."""
        ...

    def command(self, host: int) -> list[str]:
        """What to write before a command that is to run there."""
        ...

    def ports(self, host: int) -> list[str]:
        """Options of `ray start` without which hosts would take each other's ports."""
        ...


@dataclass(frozen=True, slots=True)
class Hosts:
    """A running Ray on hosts of its own."""

    network: Network
    address: str
    token: str = field(repr=False)
    sessions: list[int]
    """Every process of a host is of the session of its `ray start`."""

    @property
    def ips(self) -> list[str]:
        """The head's first."""
        return [self.network.ip(host) for host in range(len(self.sessions))]

    def kill(self, host: int) -> None:
        """It loses its power: every process of it is gone at once."""
        asyncio.run(end_session(self.sessions[host]))

    def kill_all(self) -> None:
        """The head's last: the others would try to reach it."""
        for host in reversed(range(len(self.sessions))):
            self.kill(host)


@contextmanager
def hosts(specs: Sequence[HostSpec]) -> Iterator[Hosts]:
    """One host per spec, the head's first; nothing of them is left afterwards."""
    with ExitStack() as stack:
        network = stack.enter_context(network_of(len(specs)))
        address = f"{network.ip(0)}:{_free_port(network.ip(0))}"
        started = Hosts(network, address, secrets.token_hex(32), [])
        folders = [Path(tempfile.mkdtemp(prefix="baton-host-", dir="/tmp")) for _ in specs]
        for folder in folders:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(started.kill_all)
        started.sessions.append(_start(started, 0, specs[0], folders[0]))
        with ThreadPoolExecutor() as pool:
            others = range(1, len(specs))
            starting = [pool.submit(_start, started, i, specs[i], folders[i]) for i in others]
        # Those that started are to be ended also when one did not.
        started.sessions.extend(d.result() for d in starting if d.exception() is None)
        for done in starting:
            done.result()
        yield started


def _start(hosts: Hosts, host: int, spec: HostSpec, folder: Path) -> int:
    """Returns the session of its processes."""
    ip = hosts.network.ip(host)
    port = hosts.address.rpartition(":")[2]
    where = (
        [f"--address={hosts.address}"]
        if host
        else ["--head", f"--port={port}", "--include-dashboard=false"]
    )
    command = [
        *hosts.network.command(host),
        *(str(RAY), "start", *where, f"--node-ip-address={ip}"),
        *(f"--num-cpus={spec.num_cpus}", f"--resources={json.dumps(spec.resources)}"),
        *("--num-gpus=0", f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats"),
        # Hosts share a file system here.
        f"--temp-dir={folder}",
        *hosts.network.ports(host),
    ]
    return _run_in_session(command, _environment(hosts.token))


def _environment(token: str) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**ours, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_worker_niceness": "0"}


def _run_in_session(command: Sequence[str], environ: Mapping[str, str]) -> int:
    with tempfile.TemporaryFile() as said:
        # A file: a pipe would stay open for as long as what it leaves running.
        process = subprocess.Popen(
            command, env=environ, stdout=said, stderr=said, start_new_session=True
        )
        try:
            status = process.wait(START_TIMEOUT_S)
        except BaseException:
            process.kill()
            process.wait()
            asyncio.run(end_session(process.pid))
            raise
        if status != 0:
            asyncio.run(end_session(process.pid))
            said.seek(0)
            raise RuntimeError(f"{command}: status {status}\n{said.read().decode()}")
    return process.pid


@contextmanager
def network_of(num_hosts: int) -> Iterator[Network]:
    """Namespaces where this process may make them."""
    with ExitStack() as stack:
        try:
            network: Network = stack.enter_context(namespaces(num_hosts))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"hosts share one network namespace: {error}")
            network = Loopback(_block())
        yield network


@dataclass(frozen=True, slots=True)
class Loopback:
    """Hosts that are addresses of one machine: they share its ports."""

    block: int

    def ip(self, host: int) -> str:
        return f"127.77.{self.block}.{host + 1}"

    def command(self, host: int) -> list[str]:
        return []

    def ports(self, host: int) -> list[str]:
        first = FIRST_WORKER_PORT + host * NUM_WORKER_PORTS
        return [
            f"--min-worker-port={first}",
            f"--max-worker-port={first + NUM_WORKER_PORTS - 1}",
            *_unlike_another_ray(self.ip(host)),
        ]


@dataclass(frozen=True, slots=True)
class Namespaces:
    """Hosts on a bridge."""

    block: int

    def ip(self, host: int) -> str:
        # Of the range that is kept for tests between networks (RFC 2544).
        return f"198.18.{self.block}.{host + 1}"

    def command(self, host: int) -> list[str]:
        return ["ip", "netns", "exec", self.name(host)] if host else []

    def ports(self, host: int) -> list[str]:
        return [] if host else _unlike_another_ray(self.ip(host))

    def name(self, host: int) -> str:
        """Of its namespace, and of its end of the wire; 0: the bridge."""
        return f"baton{self.block}h{host}"


@contextmanager
def namespaces(num_hosts: int) -> Iterator[Namespaces]:
    """A bridge, and a wire from it to each namespace."""
    network = Namespaces(_block())
    bridge = network.name(0)
    with ExitStack() as stack:
        for host in range(1, num_hosts):
            _ip("netns", "add", network.name(host))
            # Its end of the wire goes with it, and so does ours.
            stack.callback(_ip, "netns", "del", network.name(host))
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{network.ip(0)}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for host in range(1, num_hosts):
            _wire(network, host)
        yield network


def _wire(network: Namespaces, host: int) -> None:
    name, ours = network.name(host), network.name(host) + "o"
    _ip("link", "add", ours, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", ours, "master", network.name(0), "up")
    for device in ("lo", "eth0"):
        _ip("-n", name, "link", "set", device, "up")
    _ip("-n", name, "addr", "add", f"{network.ip(host)}/24", "dev", "eth0")


def _ip(*arguments: str) -> None:
    subprocess.run(
        ["ip", *arguments], check=True, capture_output=True, text=True, timeout=IP_TIMEOUT_S
    )


def _unlike_another_ray(ip: str) -> list[str]:
    """By default these are fixed, and so the first Ray's on a machine alone."""
    return ["--dashboard-agent-listen-port=0", f"--ray-client-server-port={_free_port(ip)}"]


def _block() -> int:
    """Another one for another run on this machine, most likely."""
    return 1 + os.getpid() % 250


def _free_port(ip: str) -> int:
    with socket.socket() as probe:
        probe.bind((ip, 0))
        port: int = probe.getsockname()[1]
    return port
