"""Which instances may be paired: those whose KV means the same to the same model."""

import hashlib
import json
from pathlib import Path

from core.ids import Fingerprint
from core.model_spec import ModelSpec
from core.work import PROTOCOL_VERSION

_OF_THE_FILE = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype"})
"""Keys of config.json that tell who wrote it, not what the model computes."""


def fingerprint(spec: ModelSpec, tokenizer_digest: str, config_digest: str) -> Fingerprint:
    """Digest of weights and their rounding, config, tokenizer, dtype, KV layout and protocol.

    The block size is not in it: KV is counted in tokens between instances.
    """
    parts = (
        spec.weights_digest,
        config_digest,
        tokenizer_digest,
        spec.dtype,
        spec.weights,
        f"{spec.num_layers}x{spec.num_kv_heads}x{spec.head_dim}",
        f"protocol {PROTOCOL_VERSION}",
    )
    # Each with its length, so that no two lists of parts give the same text.
    text = "".join(f"{len(part)}:{part};" for part in parts)
    return Fingerprint(hashlib.sha256(text.encode()).hexdigest())


def config_digest(model_dir: Path) -> str:
    """Digest of config.json: rotary base, norms and the like, which the weights do not hold."""
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in _OF_THE_FILE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
