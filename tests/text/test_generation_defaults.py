"""What a model's generation_config.json wants, and how a bad one is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import ModelError
from core.request import SamplingParams
from text.generation_defaults import GenerationDefaults

VOCAB_SIZE = 100


def load(folder: Path, document: object) -> GenerationDefaults:
    (folder / "generation_config.json").write_text(json.dumps(document))
    return GenerationDefaults.load(folder, vocab_size=VOCAB_SIZE)


def test_without_a_file_they_are_ours(tmp_path: Path) -> None:
    assert GenerationDefaults.load(tmp_path, vocab_size=VOCAB_SIZE) == GenerationDefaults()


READ: list[tuple[str, dict[str, Any], SamplingParams, int | None]] = [
    # id                       file                                    sampling, max_tokens
    ("nothing of ours", {"eos_token_id": 2, "bos_token_id": 1}, SamplingParams(), None),
    ("some", {"top_k": 20, "top_p": 0.8}, SamplingParams(top_k=20, top_p=0.8), None),
    ("whole numbers", {"temperature": 0, "top_p": 1}, SamplingParams(temperature=0.0), None),
    ("null says nothing", {"temperature": None, "max_new_tokens": None}, SamplingParams(), None),
    ("a limit", {"max_new_tokens": 2048}, SamplingParams(), 2048),
    (
        "whatever do_sample says",
        {"do_sample": False, "temperature": 0.7},
        SamplingParams(temperature=0.7),
        None,
    ),
    (
        "the others",
        {"min_p": 0.1, "repetition_penalty": 1.2},
        SamplingParams(min_p=0.1, repetition_penalty=1.2),
        None,
    ),
]


@pytest.mark.parametrize(
    ("document", "sampling", "max_tokens"), [c[1:] for c in READ], ids=[c[0] for c in READ]
)
def test_read(
    tmp_path: Path, document: dict[str, Any], sampling: SamplingParams, max_tokens: int | None
) -> None:
    want = GenerationDefaults(sampling=sampling, max_tokens=max_tokens)
    assert load(tmp_path, document) == want


REFUSED: list[tuple[str, Any, list[str]]] = [
    # id              file                              every one of these is named
    ("no object", [1], ["expected an object"]),
    ("text", {"temperature": "hot"}, ["temperature", "'hot'"]),
    ("true is no number", {"top_k": True}, ["top_k", "True"]),
    ("half a token", {"top_k": 1.5}, ["top_k", "1.5"]),
    ("too hot", {"temperature": 101}, ["temperature", "0 to 100", "101"]),
    ("NaN", {"temperature": float("nan")}, ["temperature", "nan"]),
    ("no token at all", {"top_p": 0.0}, ["top_p", "above 0"]),
    ("more than there are", {"top_k": 101}, ["top_k", "0 to 100", "101"]),
    ("nothing to say", {"max_new_tokens": 0}, ["max_new_tokens", "from 1", "0"]),
    ("two at once", {"min_p": 2, "repetition_penalty": 0}, ["min_p", "repetition_penalty"]),
]


@pytest.mark.parametrize(
    ("document", "named"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_refused(tmp_path: Path, document: object, named: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        load(tmp_path, document)
    assert all(word in str(caught.value) for word in ("generation_config.json", *named))


def test_damaged(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot read"):
        GenerationDefaults.load(tmp_path, vocab_size=VOCAB_SIZE)
