"""Finds a model's config.json: of a model that comes with Baton, or of a folder."""

import json
from importlib.resources import files
from pathlib import Path

from core.errors import ConfigError, NoProfile
from policy.model_config import shape_of
from policy.model_shape import ModelShape

MODELS = files("policy") / "models"


def presets() -> tuple[str, ...]:
    """Names of the models whose config.json lies in `policy/models`."""
    names = (entry.name for entry in MODELS.iterdir() if entry.name.endswith(".json"))
    return tuple(sorted(name.removesuffix(".json") for name in names))


def preset(name: str) -> ModelShape:
    """A model that is known without its files. Raises NoProfile."""
    if name not in presets():
        raise NoProfile(f"a model named {name!r}", presets(), "give its config.json instead")
    text = (MODELS / f"{name}.json").read_text(encoding="utf-8")
    return shape_of(json.loads(text), name)


def load_shape(path: Path) -> ModelShape:
    """From a config.json, or a folder that holds one. Raises ConfigError."""
    config = path / "config.json" if path.is_dir() else path
    try:
        document = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError((f"{config}: {error}",)) from error
    if not isinstance(document, dict):
        raise ConfigError((f"{config}: it is not an object",))
    return shape_of(document, config.parent.name)
