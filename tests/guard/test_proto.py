"""The wire contract: every part explained, code generated from it, nothing broken in silence."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2 as pb

from tools import proto, proto_contract

BASE = {
    "shop/v1/things.proto": """
        syntax = "proto3";
        package shop.v1;
        message Thing {
          string name = 1;
          optional int32 num_parts = 2;
          repeated Thing parts = 3;
          oneof price { int64 cents = 4; string barter = 5; }
          enum Kind { KIND_UNSPECIFIED = 0; KIND_BIG = 1; }
          Kind kind = 6;
        }
    """,
    "shop/v1/counter.proto": """
        syntax = "proto3";
        package shop.v1;
        import "shop/v1/things.proto";
        service Counter { rpc Sell(Thing) returns (stream Thing); rpc Buy(Thing) returns (Thing); }
    """,
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    for name, text in BASE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def landed(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> pb.FileDescriptorSet:
    return proto.compile_protos(shop, tmp_path_factory.mktemp("out"))


# --- our own .proto files -----------------------------------------------------------------------


Part = tuple[tuple[int, ...], str]
"""Where something stands in its file's descriptor (field numbers and indices), and its name."""


def enum_parts(path: tuple[int, ...], scope: str, enum: pb.EnumDescriptorProto) -> Iterator[Part]:
    yield path, scope + enum.name
    for i, value in enumerate(enum.value):
        yield (*path, 2, i), f"{scope}{enum.name}.{value.name}"


def message_parts(path: tuple[int, ...], scope: str, message: pb.DescriptorProto) -> Iterator[Part]:
    if message.options.map_entry:  # written by protoc
        return
    yield path, scope + message.name
    inner = f"{scope}{message.name}."
    for i, field in enumerate(message.field):
        yield (*path, 2, i), inner + field.name
    for i, nested in enumerate(message.nested_type):
        yield from message_parts((*path, 3, i), inner, nested)
    for i, enum in enumerate(message.enum_type):
        yield from enum_parts((*path, 4, i), inner, enum)


def file_parts(file: pb.FileDescriptorProto) -> Iterator[Part]:
    for i, message in enumerate(file.message_type):
        yield from message_parts((4, i), "", message)
    for i, enum in enumerate(file.enum_type):
        yield from enum_parts((5, i), "", enum)
    for i, service in enumerate(file.service):
        yield (6, i), service.name
        for j, method in enumerate(service.method):
            yield (6, i, 2, j), f"{service.name}/{method.name}"


def uncommented(file: pb.FileDescriptorProto) -> list[str]:
    """The messages, fields, enums, values, services and methods that nothing explains."""
    said = {
        tuple(location.path)
        for location in file.source_code_info.location
        if location.leading_comments.strip() or location.trailing_comments.strip()
    }
    return [f"{file.name}: {name}" for path, name in file_parts(file) if path not in said]


def test_everything_in_our_contract_is_explained(root: Path, tmp_path: Path) -> None:
    descriptors = proto.compile_protos(root / "proto", tmp_path)
    assert [line for file in descriptors.file for line in uncommented(file)] == []


def test_the_explanation_rule_sees_what_is_missing(landed: pb.FileDescriptorSet) -> None:
    silent = {line for file in landed.file for line in uncommented(file)}
    assert "shop/v1/things.proto: Thing.Kind.KIND_BIG" in silent
    assert "shop/v1/counter.proto: Counter/Sell" in silent


# --- generating ---------------------------------------------------------------------------------


def test_generated_code_is_flat_and_loads(shop: Path, tmp_path: Path) -> None:
    generated = proto.generate(shop)
    assert set(generated) == {
        *("__init__.py", "contract.txt", "things_pb2.py", "things_pb2.pyi", "counter_pb2.py"),
        *("counter_pb2.pyi", "counter_pb2_grpc.py", "counter_pb2_grpc.pyi"),
    }
    proto.write(tmp_path / "rpc/pb", generated)
    (tmp_path / "rpc/__init__.py").touch()
    program = "from rpc.pb import counter_pb2_grpc, things_pb2; print(things_pb2.Thing.__module__)"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "rpc.pb.things_pb2"


def test_generating_twice_gives_the_same(shop: Path) -> None:
    assert proto.generate(shop) == proto.generate(shop)


def test_differences_are_named(tmp_path: Path) -> None:
    generated = {"a.py": "a", "b.py": "b"}
    assert proto.differences(tmp_path / "none", generated) == ["a.py: missing", "b.py: missing"]
    proto.write(tmp_path, generated)
    assert proto.differences(tmp_path, generated) == []
    (tmp_path / "a.py").write_text("edited")
    (tmp_path / "old.py").write_text("")
    assert proto.differences(tmp_path, generated) == [
        "old.py: its .proto is gone",
        "a.py: differs",
    ]
    proto.write(tmp_path, generated)
    assert proto.differences(tmp_path, generated) == []


def test_one_name_twice_is_refused(tmp_path: Path) -> None:
    for folder in ("v1", "v2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.proto").write_text('syntax = "proto3";')
    with pytest.raises(proto.ProtoError, match=r"same\.proto is there twice"):
        proto.generate(tmp_path)


def test_what_protoc_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.proto").write_text('syntax = "proto3"; message M { nothing x = 1; }')
    with pytest.raises(proto.ProtoError, match="nothing"):
        proto.generate(tmp_path)


# --- breaking -----------------------------------------------------------------------------------

Change = Callable[[pb.DescriptorProto, pb.ServiceDescriptorProto], object]

CHANGES: list[tuple[str, Change, list[str]]] = [
    # id, change to Thing and Counter, what it breaks
    ("nothing", lambda thing, counter: None, []),
    ("new field", lambda thing, counter: thing.field.add(name="new", number=9, type=3), []),
    ("new value", lambda thing, counter: thing.enum_type[0].value.add(name="N", number=2), []),
    (
        "new method",
        lambda thing, counter: counter.method.add(name="New", input_type=".a", output_type=".a"),
        [],
    ),
    (
        "field removed",
        lambda thing, counter: thing.field.pop(0),
        ["field shop.v1.Thing.name: was 1 string, is gone"],
    ),
    (
        "field renumbered",
        lambda thing, counter: setattr(thing.field[0], "number", 8),
        ["field shop.v1.Thing.name: was 1 string, is 8 string"],
    ),
    (
        "field retyped",
        lambda thing, counter: setattr(thing.field[0], "type", 12),
        ["field shop.v1.Thing.name: was 1 string, is 1 bytes"],
    ),
    (
        "field repeated",
        lambda thing, counter: setattr(thing.field[0], "label", 3),
        ["field shop.v1.Thing.name: was 1 string, is 1 repeated string"],
    ),
    (
        "presence lost",
        lambda thing, counter: setattr(thing.field[1], "proto3_optional", False),
        ["field shop.v1.Thing.num_parts: was 2 optional int32, is 2 int32 in oneof _num_parts"],
    ),
    (
        "left its oneof",
        lambda thing, counter: thing.field[3].ClearField("oneof_index"),
        ["field shop.v1.Thing.cents: was 4 int64 in oneof price, is 4 int64"],
    ),
    (
        "enum value removed",
        lambda thing, counter: thing.enum_type[0].value.pop(1),
        ["value shop.v1.Thing.Kind.KIND_BIG: was 1, is gone"],
    ),
    (
        "method removed",
        lambda thing, counter: counter.method.pop(1),
        ["rpc shop.v1.Counter/Buy: was (shop.v1.Thing) returns (shop.v1.Thing), is gone"],
    ),
    (
        "answer gone",
        lambda thing, counter: counter.method[1].ClearField("output_type"),
        [
            "rpc shop.v1.Counter/Buy: was (shop.v1.Thing) returns (shop.v1.Thing), "
            "is (shop.v1.Thing) returns ()"
        ],
    ),
    (
        "streaming changed",
        lambda thing, counter: setattr(counter.method[0], "server_streaming", False),
        [
            "rpc shop.v1.Counter/Sell: was (shop.v1.Thing) returns (stream shop.v1.Thing), "
            "is (shop.v1.Thing) returns (shop.v1.Thing)"
        ],
    ),
]


@pytest.mark.parametrize(("change", "want"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_breaks(change: Change, want: list[str], landed: pb.FileDescriptorSet) -> None:
    now = pb.FileDescriptorSet.FromString(landed.SerializeToString())
    by_name = {file.name: file for file in now.file}
    thing = by_name["shop/v1/things.proto"].message_type[0]
    counter = by_name["shop/v1/counter.proto"].service[0]
    change(thing, counter)
    got = proto_contract.breaks(proto_contract.facts_of(landed), proto_contract.facts_of(now))
    assert got == want


def test_a_removed_service_breaks_all_of_it(landed: pb.FileDescriptorSet) -> None:
    now = pb.FileDescriptorSet(file=[f for f in landed.file if not f.service])
    got = proto_contract.breaks(proto_contract.facts_of(landed), proto_contract.facts_of(now))
    assert [line.partition(":")[0] for line in got] == [
        "service shop.v1.Counter",
        "rpc shop.v1.Counter/Sell",
        "rpc shop.v1.Counter/Buy",
    ]


def test_facts_survive_their_file(landed: pb.FileDescriptorSet) -> None:
    facts = proto_contract.facts_of(landed)
    assert proto_contract.parse(proto_contract.dump(facts)) == facts


# --- breaking, as git remembers it --------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def commit(folder: Path, contract: str, message: str) -> None:
    path = folder / proto_contract.CONTRACT
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(contract)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--no-verify", "-m", message)


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_a_commit_may_break_only_aloud(repository: Path) -> None:
    assert proto_contract.breaks_since_commit(repository, {}) == []
    commit(repository, "a = 1\nb = 2\n", "proto: a and b")
    assert proto_contract.breaks_since_commit(repository, {"a": "1", "c": "3"}) == [
        "b: was 2, is gone"
    ]
    commit(repository, "a = 1\nb = 3\n", "proto: another b\n\nBreaks: nobody had a b yet")
    assert proto_contract.silent_breaks(repository) == []
    commit(repository, "b = 3\n", "proto: tidy up")
    (found,) = proto_contract.silent_breaks(repository)
    assert found.endswith(": a: was 1, is gone")


def test_outside_git_nothing_is_known_to_have_landed(tmp_path: Path) -> None:
    assert proto_contract.breaks_since_commit(tmp_path, {"a": "1"}) == []
    assert proto_contract.silent_breaks(tmp_path) == []
