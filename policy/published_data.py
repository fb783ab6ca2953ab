"""Reads the published profiles that lie in `policy/published`."""

import csv
import json
from importlib.resources import files
from typing import Any

DATA = files("policy") / "published"


def read_json(name: str) -> dict[str, Any]:
    """A whole file."""
    document: dict[str, Any] = json.loads((DATA / name).read_text(encoding="utf-8"))
    return document


def read_csv(name: str) -> list[dict[str, str]]:
    """Its rows by column name."""
    return list(csv.DictReader((DATA / name).read_text(encoding="utf-8").splitlines()))
