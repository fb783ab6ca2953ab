"""Generates `rpc/pb` from `proto/`; with `--check` compares instead of writing.

    python -m tools.proto [--check]

Every `proto/**/NAME.proto` becomes `rpc/pb/NAME_pb2.py` and its `.pyi`, and one with services also
`NAME_pb2_grpc.py`: flat, because the import name `proto` belongs to another package.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import sysconfig
import tempfile
from importlib.resources import files
from pathlib import Path

from google.protobuf import descriptor_pb2 as pb

from tools import proto_contract

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "rpc.pb"
INIT = '"""Generated from `proto/` by `make proto`; never edited."""\n'
PROTOC_TIMEOUT_S = 120.0  # takes about 2 s; a plugin that hangs must not hang the build


class ProtoError(Exception):
    """The `.proto` files cannot be compiled, or cannot be laid flat."""


def sources(proto: Path) -> list[Path]:
    """The `.proto` files below `proto`, relative to it, in a fixed order."""
    found = sorted(path.relative_to(proto) for path in proto.rglob("*.proto"))
    stems = [path.stem for path in found]
    for stem in {stem for stem in stems if stems.count(stem) > 1}:
        raise ProtoError(f"{stem}.proto is there twice, and {PACKAGE} is flat: rename one")
    return found


def compile_protos(proto: Path, out: Path) -> pb.FileDescriptorSet:
    """Run protoc on all of `proto` into `out`; comments are kept in what is returned."""
    descriptors = out / "descriptors.binpb"
    scripts = Path(sysconfig.get_path("scripts"))
    plugins = [
        f"--plugin=protoc-gen-{name}={scripts / f'protoc-gen-{name}'}"
        for name in ("mypy", "mypy_grpc")
    ]
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", *plugins),
        *(f"-I{proto}", f"-I{files('grpc_tools') / '_proto'}"),
        *(f"--python_out={out}", f"--grpc_python_out={out}"),
        *(f"--mypy_out=quiet:{out}", f"--mypy_grpc_out=quiet:{out}"),
        *(f"--descriptor_set_out={descriptors}", "--include_source_info"),
        *map(str, sources(proto)),
    ]
    done = subprocess.run(
        command, cwd=proto, capture_output=True, text=True, timeout=PROTOC_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise ProtoError(f"protoc: {(done.stderr or done.stdout).strip()}")
    return pb.FileDescriptorSet.FromString(descriptors.read_bytes())


def flatten(text: str, packages: set[str]) -> str:
    """Make generated code that imports from `packages` (dotted folders) import from `rpc.pb`."""
    for package in sorted(packages, key=len, reverse=True):
        dotted = re.escape(package)
        text = re.sub(rf"^from {dotted} import ", f"from {PACKAGE} import ", text, flags=re.M)
        text = re.sub(rf"^from {dotted}\.(\w+_pb2)", rf"from {PACKAGE}.\1", text, flags=re.M)
        # The module that messages say they live in.
        text = re.sub(rf"(DESCRIPTOR, '){dotted}\.(\w+_pb2')", rf"\1{PACKAGE}.\2", text)
    return text


def generate(proto: Path) -> dict[str, str]:
    """File name in `rpc/pb` → its text."""
    with tempfile.TemporaryDirectory(prefix="baton-proto-") as folder:
        out = Path(folder)
        descriptors = compile_protos(proto, out)
        packages = {".".join(path.parent.parts) for path in sources(proto)} - {""}
        generated = {"__init__.py": INIT}
        generated["contract.txt"] = proto_contract.dump(proto_contract.facts_of(descriptors))
        for file in descriptors.file:
            kinds = ["_pb2.py", "_pb2.pyi"]
            # protoc writes an empty module for a file without services.
            kinds += ["_pb2_grpc.py", "_pb2_grpc.pyi"] if file.service else []
            stem = file.name.removesuffix(".proto")
            for kind in kinds:
                text = (out / f"{stem}{kind}").read_text(encoding="utf-8")
                generated[f"{Path(stem).name}{kind}"] = flatten(text, packages)
        return generated


def differences(folder: Path, generated: dict[str, str]) -> list[str]:
    """The files in `folder` that are not what `generated` says, each with a word on why."""
    have = {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    found = [f"{name}: missing" for name in sorted(generated.keys() - have)]
    found += [f"{name}: its .proto is gone" for name in sorted(have - generated.keys())]
    for name in sorted(generated.keys() & have):
        if (folder / name).read_text(encoding="utf-8") != generated[name]:
            found.append(f"{name}: differs")
    return found


def write(folder: Path, generated: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_file() and path.name not in generated:
            path.unlink()
    for name, text in generated.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def report(title: str, lines: list[str]) -> bool:
    """Print `lines` under `title` when there are any."""
    if lines:
        print(title, *(f"  {line}" for line in lines), sep="\n", file=sys.stderr)
    return bool(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools.proto", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args(arguments).check
    folder = ROOT / PACKAGE.replace(".", "/")
    try:
        generated = generate(ROOT / "proto")
    except ProtoError as error:
        print(error, file=sys.stderr)
        return 1
    now = proto_contract.parse(generated["contract.txt"])
    broken = report(
        "the last commit promised (a commit may break this with a line `Breaks: why`):",
        proto_contract.breaks_since_commit(ROOT, now),
    )
    if not check:
        write(folder, generated)
        print(f"{len(generated)} files in {folder.relative_to(ROOT)}")
        return 0
    stale = report("rpc/pb is stale, run `make proto`:", differences(folder, generated))
    silent = report("broken without a `Breaks: why` line:", proto_contract.silent_breaks(ROOT))
    return int(broken or stale or silent)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
