"""Configuration: unknown keys and broken bounds are all reported at once."""

import pytest

from core.config import Config, parse
from core.errors import ConfigError

REFUSED = [
    # id                     TOML                                        every one of these is named
    ("not TOML", "[router", ["config"]),
    ("unknown table", "[rooter]\nmax_queued = 1", ["rooter"]),
    ("unknown key", "[router]\nmax_queue = 1", ["max_queue"]),
    ("wrong type", '[engine]\nblock_size = "16"', ["block_size", "int"]),
    ("bool is not int", "[engine]\nblock_size = true", ["block_size", "bool"]),
    ("too small", "[engine]\nblock_size = 0", ["block_size", "at least 1", "got 0"]),
    ("no URL", '[router]\notlp_endpoint = "localhost:4318"', ["otlp_endpoint", "http://"]),
    ("no host", '[router]\notlp_endpoint = "http://"', ["otlp_endpoint"]),
    ("half a bracket", '[router]\notlp_endpoint = "http://[::1"', ["otlp_endpoint"]),
    ("no port", '[router]\notlp_endpoint = "http://a:x"', ["otlp_endpoint"]),
    ("more than all", "[router]\ntrace_sample_ratio = 1.5", ["trace_sample_ratio", "0 to 1"]),
    ("nan ratio", "[router]\ntrace_sample_ratio = nan", ["trace_sample_ratio", "0 to 1"]),
    ("nan", "[router]\nsilence_s = nan", ["silence_s", "above 0"]),
    ("two at once", "[engine]\nnum_blocks = 0\ndtype = 'int3'", ["num_blocks", "dtype", "int3"]),
    ("no such weights", '[engine]\nweights = "int4"', ["weights", "stored or int8", "int4"]),
    ("int8 in bfloat16", '[engine]\nweights = "int8"\ndtype = "bfloat16"', ["int8", "bfloat16"]),
    ("int8 on a GPU", '[engine]\nweights = "int8"\ndevice = "cuda"', ["int8", "cpu", "cuda"]),
    ("segment too large", "[handoff]\nmax_segment_bytes = 5000000", ["4 MiB", "5000000"]),
    ("unknown overlap", "[handoff]\noverlap = 'never'", ["adaptive, whole, layerwise", "never"]),
]


@pytest.mark.parametrize(("text", "named"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_refused(text: str, named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert all(word in str(caught.value) for word in named)


def test_defaults_are_valid() -> None:
    assert not list(Config().problems())


def test_values_are_read_and_integers_serve_as_seconds() -> None:
    config = parse("[router]\nmax_queued = 3\nsilence_s = 2\n[engine]\nnum_blocks = 7")
    assert (config.router.max_queued, config.router.silence_s) == (3, 2.0)
    assert config.engine.num_blocks == 7
    assert config.worker == Config().worker
