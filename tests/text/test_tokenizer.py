"""The tokenizer of a model's folder: what it reads, and how it refuses."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import processors

from core.errors import InvalidRequest, ModelError
from deploy.tiny_model import write_tiny_llama
from tests.text.vocabularies import byte_level, wrap
from text.tokenizer import Tokenizer

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "model")


def rewrite(path: Path, **changes: object) -> None:
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(document))


def test_load(model_dir: Path) -> None:
    tokenizer = Tokenizer.load(model_dir)
    assert tokenizer.vocab_size == 512
    assert tokenizer.eos_token_ids == (2,)
    assert (
        tokenizer.digest == hashlib.sha256((model_dir / "tokenizer.json").read_bytes()).hexdigest()
    )


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_decode_undoes_encode(text: str) -> None:
    tokenizer = wrap(byte_level())
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_special_tokens_are_skipped_unless_asked_for() -> None:
    tokenizer = wrap(byte_level())
    token_ids = tokenizer.encode("a<|a|>b<plain>")
    assert tokenizer.decode(token_ids) == "ab<plain>"
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == "a<|a|>b<plain>"


def test_chat_prompts_get_no_second_beginning(model_dir: Path) -> None:
    raw = RawTokenizer.from_file(str(model_dir / "tokenizer.json"))
    raw.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    raw.save(str(model_dir / "tokenizer.json"))
    tokenizer = Tokenizer.load(model_dir)
    assert tokenizer.encode("hi")[0] == 1
    assert tokenizer.encode_chat(HI) == tokenizer.encode(tokenizer.apply_chat_template(HI))[1:]


EOS_CASES = [
    # id, generation_config.json, config.json, want
    ("generation config comes first", {"eos_token_id": [5, 6]}, {"eos_token_id": 7}, (5, 6)),
    ("then the config", {}, {"eos_token_id": 7}, (7,)),
    ("then the tokenizer's own", {}, {}, (2,)),
]


@pytest.mark.parametrize(
    ("generation_config", "config", "want"),
    [c[1:] for c in EOS_CASES],
    ids=[c[0] for c in EOS_CASES],
)
def test_eos_token_ids(
    model_dir: Path, generation_config: object, config: object, want: tuple[int, ...]
) -> None:
    (model_dir / "generation_config.json").write_text(json.dumps(generation_config))
    (model_dir / "config.json").write_text(json.dumps(config))
    assert Tokenizer.load(model_dir).eos_token_ids == want


def test_a_model_without_an_end(model_dir: Path) -> None:
    rewrite(model_dir / "tokenizer_config.json", eos_token=None)
    (model_dir / "generation_config.json").unlink()
    (model_dir / "config.json").unlink()
    assert Tokenizer.load(model_dir).eos_token_ids == ()


TEMPLATE_CASES = [
    # id, chat_template of tokenizer_config.json, chat_template.jinja, want
    ("in the config", "config", None, "config"),
    ("the file comes first", "config", "file", "file"),
    (
        "named",
        [{"name": "tools", "template": "x"}, {"name": "default", "template": "y"}],
        None,
        "y",
    ),
    ("special tokens", "{{ eos_token }}{{ bos_token }}", None, "<|im_end|><|im_start|>"),
]


@pytest.mark.parametrize(
    ("in_config", "in_file", "want"),
    [c[1:] for c in TEMPLATE_CASES],
    ids=[c[0] for c in TEMPLATE_CASES],
)
def test_where_the_chat_template_is(
    model_dir: Path, in_config: object, in_file: str | None, want: str
) -> None:
    rewrite(model_dir / "tokenizer_config.json", chat_template=in_config)
    if in_file is not None:
        (model_dir / "chat_template.jinja").write_text(in_file)
    assert Tokenizer.load(model_dir).apply_chat_template(HI) == want


@pytest.mark.parametrize("template", [None, "{% for %}"], ids=["none", "broken"])
def test_a_chat_needs_a_template_but_a_prompt_does_not(model_dir: Path, template: object) -> None:
    rewrite(model_dir / "tokenizer_config.json", chat_template=template)
    tokenizer = Tokenizer.load(model_dir)
    assert tokenizer.decode(tokenizer.encode("hi")) == "hi"
    with pytest.raises(InvalidRequest, match="messages"):
        tokenizer.apply_chat_template(HI)


def test_added_token_objects_are_read(model_dir: Path) -> None:
    rewrite(
        model_dir / "tokenizer_config.json",
        eos_token={"content": "<|im_start|>", "special": True},
        chat_template="{{ eos_token }}",
    )
    assert Tokenizer.load(model_dir).apply_chat_template(HI) == "<|im_start|>"


def test_a_lone_surrogate_is_refused(model_dir: Path) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        Tokenizer.load(model_dir).encode(json.loads(r'"\ud800"'))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_damaged_files_are_named(model_dir: Path, name: str) -> None:
    (model_dir / name).write_text("[1, 2")
    with pytest.raises(ModelError, match=name):
        Tokenizer.load(model_dir)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json: No such file"):
        Tokenizer.load(tmp_path)
