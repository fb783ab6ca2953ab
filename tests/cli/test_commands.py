"""The command line: found clusters, clear errors, help for a newcomer."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import running
from cli.generate import Question, options_of
from cli.main import app

runner = CliRunner()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of this user's models is seen."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_help_names_every_command() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    assert all(
        name in result.output for name in ("fetch", "serve", "generate", "status", "explain")
    )


REFUSED = [
    # id                    arguments                              status  names
    ("no cluster", ["status"], 1, "baton serve"),
    ("nobody to ask", ["generate", "hi"], 1, "baton serve"),
    ("no such plan", ["serve", "--plan", "nowhere.toml"], 2, "nowhere.toml"),
    ("no such config", ["serve", "--config", "nowhere.toml"], 2, "nowhere.toml"),
    ("no such profile", ["serve", "--profile", "nowhere.json"], 2, "nowhere.json"),
    ("no model yet", ["serve"], 1, "baton fetch"),
    ("no such model", ["serve", "--model", "/nowhere"], 1, "/nowhere: no config.json"),
    ("no such GGUF file", ["serve", "--model", "/no.gguf"], 1, "/no.gguf: no such file"),
    ("no name of the hub", ["serve", "--model", "hf:llama"], 1, "hf:ORG/NAME@COMMIT"),
    ("nothing to fetch", ["fetch", "/no.gguf"], 1, "/no.gguf: no such file"),
    ("no such port", ["serve", "--port", "65536"], 2, "65535"),
    ("no such log format", ["serve", "--log-format", "xml"], 2, "json"),
    ("nobody to explain", ["explain", "it"], 1, "baton serve"),
    ("no such schema", ["generate", "hi", "--json-schema", "nowhere.json"], 2, "nowhere.json"),
    ("two grammars", ["generate", "hi", "--json-schema", __file__, "--regex", "a"], 2, "--regex"),
    ("binary schema", ["generate", "hi", "--json-schema", sys.executable], 1, "must be UTF-8"),
    ("too many likeliest", ["generate", "hi", "--json", "--logprobs", "21"], 2, "or equal to 20"),
    ("nowhere to print", ["generate", "hi", "--logprobs", "1"], 2, "--json"),
    ("bad address", ["status", "--address", "not an address"], 1, "host:port"),
]


@pytest.mark.parametrize(
    ("arguments", "status", "named"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_refused(arguments: list[str], status: int, named: str) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == status
    assert named in result.output
    assert "Traceback" not in result.output


def question(**given: Any) -> Question:
    fields = dict.fromkeys(field.name for field in dataclasses.fields(Question))
    return Question(**{**fields, "tenant": "", "priority": 0, **given})


GIVEN: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"seed": 0}, {"seed": 0}),
    ({"logprobs": 0}, {"logprobs": 0}),
    ({"regex": "a+"}, {"regex": "a+"}),
    ({"tenant": "acme", "priority": -1}, {"tenant": "acme", "priority": -1}),
]


@pytest.mark.parametrize(("given", "want"), GIVEN)
def test_what_is_given_is_asked(given: dict[str, Any], want: dict[str, Any]) -> None:
    always = {"max_tokens": None, "temperature": None, "tenant": "", "priority": 0}
    assert options_of(question(**given)) == {**always, **want}


def test_a_schema_is_read_from_its_file(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    assert options_of(question(json_schema=schema))["json_schema"] == '{"type": "object"}'


NEED_GRPC = {"cli.asking", "cli.controller", "cli.watching", "cli.top_sight"}
SERVING = ["serve", "generate hi", "status", "explain it", "fetch"]


@pytest.mark.parametrize("command", SERVING)
def test_the_base_installation_says_what_to_install(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    floors = ("deploy", "router", "rpc", "bench")
    loaded = [n for n in sys.modules if n.split(".")[0] in floors or n in NEED_GRPC]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    for name in ("grpc", "gguf", "psutil", "ray", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    result = runner.invoke(app, command.split())
    assert result.exit_code == 4
    assert "pip install -e '.[serve]'" in result.output
    assert "baton fetch" in result.output


def test_a_running_cluster_is_found_until_it_ends() -> None:
    with running.announced("one", ("127.0.0.1:1",), ("127.0.0.1:3",)):
        assert running.find_routers(None) == ("127.0.0.1:1",)
        assert running.find_routers("127.0.0.1:2") == ("127.0.0.1:2",)
        assert running.find_http(None) == ("127.0.0.1:3",)
    with pytest.raises(running.NoCluster):
        running.find_routers(None)


def test_a_cluster_that_cannot_be_noted_runs_all_the_same(
    own_state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_state.write_text("a file where the folder should be")
    with running.announced("one", ("127.0.0.1:1",), ("127.0.0.1:3",)):
        assert "other commands will need --address" in caplog.text
