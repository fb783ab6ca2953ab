"""Whether a model folder can be served: from its config and file headers, no weight is read.

python -m engine.checkpoint --model-dir DIR [--layout TPxPP ...]
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from core.errors import ModelError
from core.parallel import ParallelLayout
from engine.architecture import model_class, one_line, read_config
from engine.weight_files import WeightFiles, weight_files

NAMED_TENSORS = 5
"""In a message; more are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointReport:
    """A checkpoint whose tensors are what its config asks for."""

    architecture: str
    num_parameters: int
    """A tied weight counts once."""
    num_files: int
    num_bytes: int
    ignored_tensors: tuple[str, ...]
    """In the files, and without a place in the model."""


def check_checkpoint(model_dir: Path) -> CheckpointReport:
    """Raise ModelError, in one line, for whatever loading the folder would fail of."""
    config = read_config(model_dir)
    files = weight_files(model_dir)
    module, loading = _load_without_weights(model_dir, config, files)
    check_loading(model_dir, module, loading)
    return CheckpointReport(
        architecture=type(module).__name__,
        num_parameters=sum(parameter.numel() for parameter in module.parameters()),
        num_files=len(files.paths),
        num_bytes=files.num_bytes,
        ignored_tensors=tuple(sorted(loading["unexpected_keys"])),
    )


def check_loading(model_dir: Path, module: torch.nn.Module, loading: Mapping[str, Any]) -> None:
    """Raise ModelError unless `loading`, as transformers tells it, gave the whole model."""
    if missing := loading["missing_keys"]:
        shapes = {name: _shape(value) for name, value in module.state_dict().items()}
        wanted = [f"{name} {shapes.get(name, '')}".strip() for name in sorted(missing)]
        raise ModelError(f"{model_dir}: missing tensors: {_some(wanted)}")
    if wrong := loading["mismatched_keys"]:
        told = [
            f"{n} is {_text(got)}, config.json asks for {_text(want)}" for n, got, want in wrong
        ]
        raise ModelError(f"{model_dir}: wrong shapes: {_some(sorted(told))}")
    if errors := loading["error_msgs"]:
        raise ModelError(f"{model_dir}: cannot be loaded: {_some(map(one_line, errors))}")
    if sinks := [name for name, _ in module.named_parameters() if name.endswith("sinks")]:
        raise ModelError(f"{model_dir}: not supported: attention sinks ({sinks[0]})")
    for name, part in module.named_modules():
        # Encoders served as if they wrote; a part without a layer number (images) has no KV.
        if hasattr(part, "layer_idx") and getattr(part, "is_causal", True) is False:
            raise ModelError(f"{model_dir}: not supported: attention that looks ahead ({name})")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No tables and bars on standard error: what went wrong is raised, in one line."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _load_without_weights(
    model_dir: Path,
    config: Any,  # noqa: ANN401
    files: WeightFiles,
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """transformers' own loading, with all its renaming and fusing, over tensors without memory."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in files.shapes.items()}
    try:
        with quiet_transformers():
            module, loading = model_class(config).from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                device_map="meta",
                dtype=torch.float32,
                attn_implementation="eager",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # of every architecture another
        raise ModelError(f"{model_dir}: cannot be loaded: {one_line(error)}") from error
    return module, loading


def _shape(tensor: torch.Tensor) -> str:
    return _text(tensor.shape)


def _text(shape: Iterable[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _some(things: Iterable[str]) -> str:
    listed = list(things)
    more = len(listed) - NAMED_TENSORS
    return ", ".join(listed[:NAMED_TENSORS]) + (f" and {more} more" if more > 0 else "")


def main() -> int:
    """Print one JSON line: the report, or {"error": why}."""
    parser = argparse.ArgumentParser(prog="python -m engine.checkpoint")
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--layout", type=ParallelLayout.parse, action="append", default=[])
    arguments = parser.parse_args()
    try:
        answer: dict[str, Any] = asdict(check_checkpoint(arguments.model_dir))
        for layout in arguments.layout:
            # Here and not above: it builds on this module.
            from engine.sharding import check_layout

            check_layout(arguments.model_dir, layout)
    except ModelError as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main())
