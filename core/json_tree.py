"""Dataclasses from JSON: every key known, every value of its type, all problems at once."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints


def loads(text: str) -> Any:  # noqa: ANN401 - whatever it holds
    """As `json.loads`, but NaN and infinities, which JSON does not have, raise ValueError."""
    return json.loads(text, parse_constant=_no_constant)


def tree(kind: Any, value: object, where: str, problems: list[str]) -> object:  # noqa: ANN401
    """Make dataclasses and tuples of JSON values; more `problems` where that cannot be."""
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return _dataclass(kind, value, where, problems)
    if get_origin(kind) is tuple and isinstance(value, list):
        item = get_args(kind)[0]
        return tuple(tree(item, v, f"{where}[{i}]", problems) for i, v in enumerate(value))
    if get_origin(kind) is UnionType and NoneType in get_args(kind):
        inner = next(each for each in get_args(kind) if each is not NoneType)
        return None if value is None else tree(inner, value, where, problems)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        wanted = getattr(kind, "__name__", str(kind))
        problems.append(f"{where} must be {wanted}, got {type(value).__name__}")
    return value


def _dataclass(
    cls: type, table: Mapping[str, object], where: str, problems: list[str]
) -> object | None:
    types, known = get_type_hints(cls), {f.name for f in fields(cls)}
    before = len(problems)
    problems += [f"{where}: unknown key {key!r}" for key in table if key not in known]
    values = {
        key: tree(types[key], table[key], f"{where}.{key}", problems)
        for key in types
        if key in table
    }
    if len(problems) > before:
        return None
    try:
        made: object = cls(**values)
    except TypeError as error:
        problems.append(f"{where}: {error}")
        return None
    return made


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")
