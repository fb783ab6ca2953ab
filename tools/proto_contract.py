"""The wire contract as a sorted list of facts, one per line; losing a line breaks someone.

`rpc/pb/contract.txt` holds the facts of the committed `.proto` files. A fact that an earlier commit
recorded must still be true, unless the commit that drops it says so with a `Breaks: why` line.
"""

from __future__ import annotations

import itertools
import subprocess
from typing import TYPE_CHECKING

from google.protobuf import descriptor_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTRACT = "rpc/pb/contract.txt"
BREAKS = "\nBreaks: "
NUM_COMMITS_CHECKED = 200  # each costs two git calls, some milliseconds

Facts = dict[str, str]
"""What is promised (a field, a value, a method) → how (number and type, signature)."""


def facts_of(files: pb.FileDescriptorSet) -> Facts:
    """Everything in `files` that a peer built from them relies on."""
    facts: Facts = {}
    for file in files.file:
        scope = f"{file.package}." if file.package else ""
        for message in file.message_type:
            facts.update(_message_facts(scope, message))
        for enum in file.enum_type:
            facts.update(_enum_facts(scope, enum))
        for service in file.service:
            facts.update(_service_facts(scope, service))
    return facts


def _message_facts(scope: str, message: pb.DescriptorProto) -> Iterator[tuple[str, str]]:
    name = scope + message.name
    yield f"message {name}", ""
    for field in message.field:
        yield f"field {name}.{field.name}", f"{field.number} {_field_type(message, field)}"
    for enum in message.enum_type:
        yield from _enum_facts(f"{name}.", enum)
    for nested in message.nested_type:
        yield from _message_facts(f"{name}.", nested)


def _field_type(message: pb.DescriptorProto, field: pb.FieldDescriptorProto) -> str:
    words = [field.type_name.removeprefix(".")] if field.type_name else []
    if not words:
        words = [pb.FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()]
    if field.label == pb.FieldDescriptorProto.LABEL_REPEATED:
        words.insert(0, "repeated")
    if field.proto3_optional:
        words.insert(0, "optional")
    elif field.HasField("oneof_index"):
        words.append(f"in oneof {message.oneof_decl[field.oneof_index].name}")
    return " ".join(words)


def _enum_facts(scope: str, enum: pb.EnumDescriptorProto) -> Iterator[tuple[str, str]]:
    yield f"enum {scope}{enum.name}", ""
    for value in enum.value:
        yield f"value {scope}{enum.name}.{value.name}", str(value.number)


def _service_facts(scope: str, service: pb.ServiceDescriptorProto) -> Iterator[tuple[str, str]]:
    yield f"service {scope}{service.name}", ""
    for method in service.method:
        takes = ("stream " if method.client_streaming else "") + method.input_type.removeprefix(".")
        gives = ("stream " if method.server_streaming else "") + method.output_type.removeprefix(
            "."
        )
        yield f"rpc {scope}{service.name}/{method.name}", f"({takes}) returns ({gives})"


def dump(facts: Facts) -> str:
    return "".join(f"{key} = {facts[key]}".rstrip(" =") + "\n" for key in sorted(facts))


def parse(text: str) -> Facts:
    return {key: how for key, _, how in (line.partition(" = ") for line in text.splitlines())}


def breaks(landed: Facts, now: Facts) -> list[str]:
    """What `landed` promised and `now` does not keep, one sentence each."""
    found = []
    for key, how in landed.items():
        if key not in now:
            found.append(f"{key}: was {how or 'there'}, is gone")
        elif now[key] != how:
            found.append(f"{key}: was {how}, is {now[key]}")
    return found


def breaks_since_commit(root: Path, now: Facts) -> list[str]:
    """Against the contract of the last commit; nothing where git knows none."""
    return breaks(parse(_git(root, "show", f"HEAD:{CONTRACT}")), now)


def silent_breaks(root: Path) -> list[str]:
    """Breaks between commits whose message has no `Breaks:` line."""
    limit = f"--max-count={NUM_COMMITS_CHECKED}"
    commits = _git(root, "log", "--first-parent", limit, "--format=%H", "--", CONTRACT).split()
    found = []
    for newer, older in itertools.pairwise(commits):
        then, now = (parse(_git(root, "show", f"{c}:{CONTRACT}")) for c in (older, newer))
        broken = breaks(then, now)
        if broken and BREAKS not in _git(root, "log", "-1", "--format=%B", newer):
            found += [f"{newer[:10]}: {line}" for line in broken]
    return found


def _git(root: Path, *arguments: str) -> str:
    """What git prints, or nothing where it fails: no repository, no such file yet."""
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""
