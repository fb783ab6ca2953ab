"""How a model wants its tokens chosen: what its generation_config.json says for whoever says
nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import FieldViolation, ModelError
from core.request import SamplingParams
from core.validation import sampling_violations
from text.model_files import read_object

_NUMBERS: Mapping[str, tuple[type, ...]] = {
    "temperature": (int, float),
    "top_k": (int,),
    "top_p": (int, float),
    "min_p": (int, float),
    "repetition_penalty": (int, float),
}
"""Fields whose names and meaning are the same there and in SamplingParams."""
_LIMIT = "max_new_tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """For requests that leave something open.

    `do_sample` is not read: as in vLLM, whatever fields are there count. transformers' `generate`
    would ignore them and be greedy unless it is true, but a file that names a temperature means it.
    """

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    """None: up to the context limit."""

    @classmethod
    def load(cls, model_dir: Path, *, vocab_size: int) -> "GenerationDefaults":
        """Of a checkpoint's folder; without the file, ours.

        Raises:
            ModelError: the file cannot be read, or values break their bounds; names the fields.
        """
        path = model_dir / "generation_config.json"
        # A null says nothing.
        document = {n: value for n, value in read_object(path).items() if value is not None}
        problems = list(_type_problems(document))
        if not problems:
            sampling = SamplingParams(**{n: document[n] for n in _NUMBERS if n in document})
            problems = list(map(_described, sampling_violations(sampling, vocab_size)))
        if problems:
            raise ModelError(f"{path}: {'; '.join(problems)}")
        return cls(sampling=sampling, max_tokens=document.get(_LIMIT))


def _type_problems(document: Mapping[str, Any]) -> Iterator[str]:
    for name, types in _NUMBERS.items():
        # Not isinstance: True is an int.
        if name in document and type(document[name]) not in types:
            yield f"{name}: must be a number, got {document[name]!r}"
    limit = document.get(_LIMIT, 1)
    if type(limit) is not int or limit < 1:
        yield f"{_LIMIT}: must be a whole number from 1, got {limit!r}"


def _described(violation: FieldViolation) -> str:
    return f"{violation.field.removeprefix('sampling.')}: {violation.description}"
