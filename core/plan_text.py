"""A plan as TOML again, for plans that a program has made from another one."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace

from core.member import Role
from core.plan import Plan, parse_plan


def with_replicas(plan: Plan, replicas: Mapping[Role, int]) -> Plan:
    """The same plan with pools of other sizes."""
    pools = {role.value: replace(plan.pools[role], replicas=num) for role, num in replicas.items()}
    return replace(plan, **pools)  # type: ignore[arg-type]


def plan_text(plan: Plan, remarks: tuple[str, ...] = ()) -> str:
    """What `parse_plan` reads as this plan; defaults are left out, but for sizes of pools."""
    lines = [*(f"# {remark}" for remark in remarks), *_table(plan, Plan(), "")]
    text = "\n".join(lines).strip() + "\n"
    assert parse_plan(text) == plan, "what is written can be read"
    return text


def _table(node: object, default: object, path: str) -> Iterator[str]:
    """Scalars first: in TOML what follows a table's head belongs to it."""
    nested = []
    assert is_dataclass(node)
    for part in fields(node):
        value, usual = getattr(node, part.name), getattr(default, part.name, None)
        name = f"{path}.{part.name}" if path else part.name
        if is_dataclass(value) or isinstance(value, dict):
            nested.append((name, value, usual))
        elif value != usual or part.name == "replicas":
            yield f"{part.name} = {_scalar(value)}"
    for name, value, usual in nested:
        yield from _nested(name, value, usual)


def _nested(path: str, value: object, usual: object) -> Iterator[str]:
    if isinstance(value, dict):
        if value and all(isinstance(each, float) for each in value.values()):
            yield from ["", f"[{path}]"]
            yield from (f"{_key(key)} = {_scalar(each)}" for key, each in value.items())
        else:
            for key, each in value.items():
                yield from ["", f"[{path}.{_key(key)}]", *_table(each, None, f"{path}.{_key(key)}")]
        return
    lines = list(_table(value, usual, path))
    if lines:
        yield from ["", f"[{path}]", *lines]


def _key(text: str) -> str:
    return (
        text
        if text.replace("-", "").replace("_", "").isalnum() and text.isascii()
        else json.dumps(text)
    )


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    # A JSON string is a TOML string, but for characters that neither a plan nor a path holds.
    return json.dumps(value) if isinstance(value, str) else repr(value)
