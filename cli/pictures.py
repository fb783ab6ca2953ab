"""How a cluster looks to people: words, durations, and tables that fit a terminal of 80."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rpc.pb.controller_pb2 import ClusterEvent, ClusterState, MemberState, OnlineState

NUM_EVENTS = 5
SERVING = "serving"
"""Of MemberState's states."""
_STYLES = {"starting": "yellow", "draining": "yellow", "lost": "red"}


def plain_console() -> Console:
    """Standard output, word for word: brackets are no markup."""
    return Console(highlight=False, markup=False)


def slim_table(*columns: str, title: str | None = None, gap: int = 1) -> Table:
    """Without lines at its sides, which take room; whose row it is stays on one line.

    Between columns there is a space, and `gap` more.
    """
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, gap, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == columns[0])
    return table


def cluster_picture(state: "ClusterState", num_events: int = NUM_EVENTS) -> Group:
    """What the controller knows: its plan, its members, what happened last."""
    parts: list[RenderableType] = [*headline(state), Text(""), members_table(state.members)]
    if num_events and state.events:
        parts += [Text(""), events_table(state.events[-num_events:])]
    return Group(*parts)


def headline(state: "ClusterState") -> list[Text]:
    """Which cluster, which plan, and what is still to come."""
    edition = f"plan edition {state.edition}" if state.edition else "no plan yet"
    words = "settled" if state.settled else "not settled"
    first = Text(f"cluster {state.cluster}: {edition}, {words}", style="bold")
    return [first, *(Text(f"  waits for {each}", style="yellow") for each in state.waits_for)]


def members_table(members: "Sequence[MemberState]") -> Table:
    """Who is there, and who comes and goes."""
    table = slim_table("member", "role", "state", "for", "host", "OpenAI API")
    for member in sorted(members, key=lambda m: m.name):
        table.add_row(
            member.name,
            role_word(member.role),
            state_text(member.state),
            age(member.in_state_s),
            member.host,
            member.http_address,
        )
    return table


def events_table(events: "Sequence[ClusterEvent]") -> Table:
    """The oldest first."""
    table = slim_table("at (UTC)", "member", "event")
    for event in events:
        table.add_row(moment(event.at_unix_s), event.member or "cluster", event.text)
    return table


def online_text(online: "OnlineState") -> Text:
    """What online planning sees, and what it last decided."""
    seen = (
        f"online: {online.rate_per_s:.3g} requests/s of {online.mean_prompt_tokens:.0f} prompt and"
        f" {online.mean_output_tokens:.0f} output tokens; {online.attainment:.0%} of"
        f" {online.num_requests} kept the targets"
    )
    return Text(f"{seen}\n  last decision: {online.decision or 'none yet'}")


def state_text(state: str, more: str = "") -> Text:
    """What is not as it is to be catches the eye."""
    return Text(state + more, style=_STYLES.get(state, ""))


def role_word(role: int) -> str:
    """Of the wire's number; a number of a newer peer is shown as it is."""
    from rpc.pb.types_pb2 import Role

    known = Role.Name(role) if role in Role.values() else str(role)  # type: ignore[arg-type]
    return known.removeprefix("ROLE_").lower()


def age(duration_s: float) -> str:
    """For people: 12 s, 3 min, 2.5 h, 3.0 d."""
    for unit, word, digits in ((86_400.0, "d", 1), (3600.0, "h", 1), (60.0, "min", 0)):
        if duration_s >= unit:
            return f"{duration_s / unit:.{digits}f} {word}"
    return f"{max(0.0, duration_s):.0f} s"


def moment(at_unix_s: float) -> str:
    """The time of day; the day is today's or yesterday's."""
    return datetime.fromtimestamp(at_unix_s, UTC).strftime("%H:%M:%S")
