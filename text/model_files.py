"""JSON files of a model folder."""

import json
from pathlib import Path
from typing import Any

from core.errors import ModelError


def read_object(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no file. Raises ModelError, naming it."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(document, dict):
        raise ModelError(f"cannot read {path}: expected an object")
    return document
