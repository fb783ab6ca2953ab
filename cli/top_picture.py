"""What `baton top` draws of one moment."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from cli.pictures import (
    SERVING,
    age,
    events_table,
    headline,
    online_text,
    role_word,
    slim_table,
    state_text,
)

if TYPE_CHECKING:
    from rich.table import Table

    from rpc.pb.cluster_pb2 import InstanceStatus, StatusReply
    from rpc.pb.controller_pb2 import ClusterState, MemberState
    from rpc.pb.types_pb2 import LoadReport

BAR_CHARS = 5
"""With names of 14, a terminal of 80 holds an instance's line."""
NUM_EVENTS = 5


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast one instance works."""

    prompt_tokens_per_s: float
    """That it took in: found in its cache or to be computed."""
    steps_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSeen:
    """One router's answer."""

    address: str
    reply: "StatusReply | None"
    trouble: str = ""
    """Why there is no reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One moment."""

    state: "ClusterState | None"
    """The last one heard; None: none ever was."""
    state_age_s: float = 0.0
    """Since it was heard: members have been in their states so much longer."""
    trouble: str = ""
    """Why the controller is not heard now; empty: it is."""
    routers: Sequence[RouterSeen] = ()
    paces: Mapping[str, Pace] = field(default_factory=dict)
    """By instance id; who was seen only once has none."""


def picture(view: View) -> Group:
    """All of it."""
    parts: list[RenderableType] = []
    if view.state is not None:
        parts += headline(view.state)
    if view.trouble:
        parts.append(Text(view.trouble, style="red"))
    if view.state is not None and view.state.HasField("online"):
        parts.append(online_text(view.state.online))
    parts += [Text(""), _instances_table(view), Text(""), _routers_table(view)]
    if view.state is not None and view.state.events:
        parts += [Text(""), events_table(view.state.events[-NUM_EVENTS:])]
    return Group(*parts)


def statuses(routers: "Sequence[RouterSeen]") -> "dict[str, InstanceStatus]":
    """Of each instance what a router with a link to it says; else what any says."""
    found: dict[str, InstanceStatus] = {}
    for router in routers:
        for status in router.reply.instances if router.reply is not None else ():
            before = found.get(status.instance_id)
            if before is None or (status.connected and not before.connected):
                found[status.instance_id] = status
    return found


def _instances_table(view: View) -> "Table":
    columns = ("instance", "role", "state", "prefill", "decode", "blocks", "prompt/s", "steps/s")
    table = slim_table(*columns, gap=0)
    members = {m.name: m for m in _members(view, routers=False)}
    known = statuses(view.routers)
    for name in sorted({*members, *known}):
        table.add_row(*_row(name, members.get(name), known.get(name), view))
    return table


def _row(
    name: str, member: "MemberState | None", status: "InstanceStatus | None", view: View
) -> tuple[str | Text, ...]:
    load = status.load if status is not None else None
    pace = view.paces.get(name)
    role = member.role if member is not None else status.role if status is not None else 0
    return (
        name,
        role_word(role),
        _state(member, status, view),
        str(load.num_prefilling) if load is not None else "",
        str(load.num_decoding + load.num_incoming) if load is not None else "",
        _bar(load) if load is not None else "",
        f"{pace.prompt_tokens_per_s:,.0f}" if pace is not None else "",
        f"{pace.steps_per_s:,.1f}" if pace is not None else "",
    )


def _state(member: "MemberState | None", status: "InstanceStatus | None", view: View) -> Text:
    """The controller's word; without it what the router's link says."""
    if member is not None:
        # How long somebody serves is of no interest here: `baton status` says it.
        since = "" if member.state == SERVING else f" {age(member.in_state_s + view.state_age_s)}"
        return state_text(member.state, since)
    if status is None or not status.connected:
        return state_text("lost")
    return state_text("draining" if status.load.draining else SERVING)


def _bar(load: "LoadReport") -> str:
    """Prefixes that nobody uses now are room."""
    if not load.num_blocks:
        return ""
    share = min(1.0, max(0.0, 1.0 - load.num_free_blocks / load.num_blocks))
    full = round(share * BAR_CHARS)
    # However little, it is seen.
    full = max(full, 1) if share else 0
    return f"{'█' * full}{'░' * (BAR_CHARS - full)} {share:4.0%}"


def _routers_table(view: View) -> "Table":
    table = slim_table("router", "state", "gRPC", "OpenAI API", "running", "queued")
    by_address = {router.address: router for router in view.routers}
    for member in _members(view, routers=True):
        seen = by_address.pop(member.address, None)
        table.add_row(member.name, _state(member, None, view), member.address, *_figures(seen))
    for seen in by_address.values():
        state = SERVING if seen.reply is not None else ""
        table.add_row("", state, seen.address, *_figures(seen))
    return table


def _figures(seen: RouterSeen | None) -> tuple[str, str, str]:
    if seen is None:
        return ("", "", "")
    if seen.reply is None:
        return (seen.trouble, "", "")
    reply = seen.reply
    return (reply.http_address, str(reply.num_requests), str(reply.num_queued))


def _members(view: View, *, routers: bool) -> "Iterator[MemberState]":
    from rpc.pb.types_pb2 import ROLE_ROUTER

    members = view.state.members if view.state is not None else ()
    for member in sorted(members, key=lambda m: m.name):
        if (member.role == ROLE_ROUTER) == routers:
            yield member
