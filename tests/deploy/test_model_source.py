"""What a user may call a model: each name leads to one checkpoint folder, or to one clear error."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from safetensors.numpy import load_file

from core.errors import ModelError
from deploy import model_source
from deploy.gguf_checkpoint import CHECKPOINT_FILES, WEIGHTS_FILE
from deploy.hub import HuggingFaceHub
from deploy.model_source import resolve_model
from deploy.tiny_model import write_tiny_llama
from tests.deploy.gguf_files import write_gguf

REPO = "tiny/llama"
HEAD = "0123456789abcdef0123456789abcdef01234567"
"""The only commit."""
NAME = f"hf:{REPO}@{HEAD}"


@dataclass
class FakeHub:
    """As much of the hub's HTTP interface as a download needs."""

    files: dict[str, bytes]
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""

    @property
    def hub(self) -> HuggingFaceHub:
        """The real client, that asks this server."""
        return HuggingFaceHub(endpoint=self.endpoint)

    def answer(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers, body."""
        self.asked.append(f"{method} {path}")
        path = path.partition("?")[0]
        name = path.removeprefix(f"/{REPO}/resolve/{HEAD}/")
        if path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main"):
            return 200, {}, json.dumps({"id": REPO, "sha": HEAD}).encode()
        if path == f"/api/models/{REPO}/tree/{HEAD}":
            return 200, {}, json.dumps(list(self._tree())).encode()
        if name != path and name in self.files:
            return 200, {"ETag": f'"{name}"', "X-Repo-Commit": HEAD}, self.files[name]
        return 404, {"X-Error-Code": "RepoNotFound"}, b""

    def _tree(self) -> Iterator[dict[str, object]]:
        for name, content in self.files.items():
            yield {"type": "file", "path": name, "size": len(content), "oid": name}


def handler_of(fake: FakeHub) -> type[BaseHTTPRequestHandler]:
    """Answers as `fake` says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = fake.answer(self.command, self.path)
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def running(fake: FakeHub) -> Iterator[FakeHub]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_of(fake)) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        fake.endpoint = f"http://127.0.0.1:{server.server_port}"
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeHub]:
    """A repository as they are: the model, the same as a pickle, and in another format."""
    tiny = write_tiny_llama(tmp_path / "tiny")
    files = {path.name: path.read_bytes() for path in tiny.iterdir()}
    others = dict.fromkeys(("pytorch_model.bin", "original/params.json", "README.md"), b"{}")
    with running(FakeHub(files | others | {"chat_template.jinja": b"{{ messages }}"})) as fake:
        yield fake


def test_a_pinned_model_is_downloaded_once(fake: FakeHub, tmp_path: Path) -> None:
    steps: list[tuple[str, float]] = []
    cache = tmp_path / "cache"
    found = resolve_model(NAME, lambda *s: steps.append(s), cache_dir=cache, hub=fake.hub)
    assert found == cache / "models" / "tiny--llama@0123456789ab"
    names = sorted(path.name for path in found.iterdir() if path.is_file())
    assert names == sorted([*CHECKPOINT_FILES, "chat_template.jinja"])
    assert (found / WEIGHTS_FILE).read_bytes() == fake.files[WEIGHTS_FILE]
    assert steps == [("download tiny/llama", 0.0), ("download tiny/llama", 1.0)]
    assert not any("bin" in question or "original" in question for question in fake.asked)
    fake.asked.clear()
    assert resolve_model(NAME, cache_dir=cache, hub=fake.hub) == found
    assert fake.asked == []  # it needs no network any more


@pytest.mark.parametrize(
    ("name", "what"), [(f"hf:{REPO}", "the default branch"), (f"hf:{REPO}@main", "main")]
)
def test_what_may_move_is_refused_with_what_to_write(
    fake: FakeHub, tmp_path: Path, name: str, what: str
) -> None:
    with pytest.raises(ModelError) as caught:
        resolve_model(name, cache_dir=tmp_path / "cache", hub=fake.hub)
    assert str(caught.value) == f"{name}: {what} may move; pin it: {NAME}"
    assert not (tmp_path / "cache").exists()


def test_a_repository_of_pickles_is_refused(fake: FakeHub, tmp_path: Path) -> None:
    del fake.files[WEIGHTS_FILE]
    for _ in range(2):  # and is not taken for complete the second time
        with pytest.raises(ModelError, match=r"has no \*.safetensors weights"):
            resolve_model(NAME, cache_dir=tmp_path / "cache", hub=fake.hub)


UNKNOWN = ["hf:no/such", f"hf:no/such@{HEAD}"]


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_repository_is_one_line(fake: FakeHub, tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="cannot get no/such from the Hugging Face hub") as caught:
        resolve_model(name, cache_dir=tmp_path / "cache", hub=fake.hub)
    assert len(str(caught.value).splitlines()) == 1


def test_no_network_says_what_else_there_is(fake: FakeHub, tmp_path: Path) -> None:
    unreachable = HuggingFaceHub(endpoint="http://127.0.0.1:1")
    with pytest.raises(ModelError, match=r"refused; without a network, name a model folder"):
        resolve_model(f"hf:{REPO}", cache_dir=tmp_path / "cache", hub=unreachable)


class BrokenHub:
    """A download that ends half-way, and the one after it."""

    def __init__(self) -> None:
        self.found: list[list[str]] = []

    def commit(self, repo: str, revision: str | None) -> str:
        raise AssertionError("a commit has nothing to look up")

    def download(self, repo: str, commit: str, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.found.append([path.name for path in folder.iterdir()])
        (folder / "model.safetensors").write_bytes(b"")
        if len(self.found) == 1:
            raise ModelError("the line went dead")


def test_a_broken_download_goes_on_and_is_never_taken_for_a_model(tmp_path: Path) -> None:
    hub = BrokenHub()
    with pytest.raises(ModelError, match="dead"):
        resolve_model(NAME, cache_dir=tmp_path, hub=hub)
    assert not (tmp_path / "models" / "tiny--llama@0123456789ab").exists()
    assert resolve_model(NAME, cache_dir=tmp_path, hub=hub).is_dir()
    assert hub.found == [[], ["model.safetensors"]]


NOT_NAMES = ["hf:", "hf:llama", "hf:a/b/c", "hf:a/b@", "hf:../b c", "hf:a/b@x y"]


@pytest.mark.parametrize("name", NOT_NAMES)
def test_what_is_no_name_says_how_one_looks(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a model of the hub is hf:ORG/NAME@COMMIT"):
        resolve_model(name, cache_dir=tmp_path)


def test_a_gguf_file_is_converted_once_per_content(tmp_path: Path) -> None:
    tiny = write_tiny_llama(tmp_path / "tiny")
    gguf = tmp_path / "my model.gguf"
    write_gguf(gguf, load_file(tiny / WEIGHTS_FILE))
    steps: list[str] = []
    found = resolve_model(str(gguf), lambda step, _: steps.append(step), cache_dir=tmp_path)
    assert found.parent == tmp_path / "models"
    assert found.name.startswith("my_model-")
    assert len(found.name) == len("my_model-") + 16
    assert (found / WEIGHTS_FILE).read_bytes() == (tiny / WEIGHTS_FILE).read_bytes()
    assert "convert" in steps
    steps.clear()
    assert resolve_model(str(gguf), lambda step, _: steps.append(step), cache_dir=tmp_path) == found
    assert steps == []
    other = load_file(write_tiny_llama(tmp_path / "other", seed=1) / WEIGHTS_FILE)
    write_gguf(gguf, other)
    assert resolve_model(str(gguf), cache_dir=tmp_path) != found


def test_a_gguf_file_that_cannot_be_converted_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"not a GGUF file")
    with pytest.raises(ModelError, match=r"bad\.gguf is not a whole GGUF file"):
        resolve_model(str(tmp_path / "bad.gguf"), cache_dir=tmp_path)
    assert [path.suffix for path in (tmp_path / "models").iterdir()] == [".lock"]
    with pytest.raises(ModelError, match=r"none\.gguf: no such file"):
        resolve_model(str(tmp_path / "none.gguf"), cache_dir=tmp_path)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, where a folder should be")
    with pytest.raises(ModelError, match=r"cannot keep the model in .*cache"):
        resolve_model(NAME, cache_dir=tmp_path / "cache", hub=BrokenHub())


def test_a_folder_is_itself_and_nothing_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("model") == resolve_model("~/model") == tmp_path / "model"
    monkeypatch.setattr(model_source, "fetch_default_model", lambda cache, _: cache / "default")
    assert resolve_model("", cache_dir=tmp_path) == tmp_path / "default"
