"""The README's "Run it on a cluster", word for word, on two hosts."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.local_ray.processes import end_session
from tests.e2e.hosts import Network, network_of

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
COMMAND_TIMEOUT_S = 200.0
PLAN = re.compile(r"```toml\n# plan\.toml\n(.*?)```", re.DOTALL)
BLOCKS = re.compile(r"```sh\n(.*?)```", re.DOTALL)
SECTION = re.compile(r"### Run it on a cluster\n(.*?)\n###", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Desk:
    """Where somebody types what the README says."""

    folder: Path
    network: Network
    environ: dict[str, str]
    sessions: list[int]

    def type(self, block: str, host: int) -> str:
        """A block of commands on one host; what they printed. Fails when one of them does."""
        text = block.replace("HEAD", self.network.ip(0)).replace("HOST", self.network.ip(host))
        text = re.sub(r"^(\S*ray start .*)$", rf"\1 {self._apart(host)}", text, flags=re.MULTILINE)
        command = [*self.network.command(host), "bash", "-euc", text]
        said = self.folder / f"said-{len(self.sessions)}"
        with said.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environ,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.sessions.append(process.pid)
            status = process.wait(COMMAND_TIMEOUT_S)
        assert status == 0, said.read_text()
        return said.read_text()

    def _apart(self, host: int) -> str:
        """These two hosts are one machine: they share its files, and it may have another Ray."""
        folder = self.folder / f"ray-{host}"
        return " ".join([*self.network.ports(host), f"--temp-dir={folder}", "--num-cpus=4"])


@pytest.fixture
def desk(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path) -> Iterator[Desk]:
    """A short folder, since Ray's sockets lie in it, with .venv as in a clone."""
    folder = Path(f"/tmp/baton-readme-{os.getpid()}")
    folder.mkdir()
    home = tmp_path_factory.mktemp("home")
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    environ = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "XDG_"))}
    environ |= {"HOME": str(home), "XDG_CACHE_HOME": str(smollm2_dir.parents[2])}
    environ |= {"PYTHONPATH": str(ROOT)}
    with network_of(2) as network:
        desk = Desk(folder, network, environ, [])
        try:
            yield desk
        finally:
            for session in reversed(desk.sessions):
                asyncio.run(end_session(session))
            shutil.rmtree(folder, ignore_errors=True)


def test_followed_literally(desk: Desk) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    plan, section = PLAN.search(readme), SECTION.search(readme)
    assert plan
    assert section
    first, others, again = BLOCKS.findall(section[1])
    (desk.folder / "plan.toml").write_text(plan[1])
    desk.type(first, 0)
    desk.type(others, 1)
    said = desk.type(again, 0)
    print(said)
    assert "to the first token" in said
    assert "cluster baton is down" in said
    # Prefill and decode were not all on one host.
    assert desk.network.ip(0) in said
    assert desk.network.ip(1) in said
