"""Where the time of a long command went, part by part; the parts sum to the whole."""

from rich import box
from rich.table import Table

from core.clock import Clock, MonotonicClock


class Parts:
    """Parts follow each other without a gap."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or MonotonicClock()
        self._began_at_s = self._clock.now_s()
        self._name = ""
        self.by_name: dict[str, float] = {}
        """Seconds, in order."""

    def begin(self, name: str) -> None:
        """The part before ends here."""
        self.end_last()
        self._name = name

    def end(self, name: str) -> None:
        """All since the part before was this."""
        self.end_last()
        self._name = name
        self.end_last()

    def end_last(self) -> None:
        """The part that was begun, if one was, ends here."""
        now_s = self._clock.now_s()
        if self._name:
            self.by_name[self._name] = self.by_name.get(self._name, 0.0) + now_s - self._began_at_s
            self._began_at_s, self._name = now_s, ""


def parts_table(parts: Parts) -> Table:
    """For people."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    table.add_column("part", footer="to the first token")
    table.add_column("seconds", justify="right", footer=f"{sum(parts.by_name.values()):.1f}")
    for name, duration_s in parts.by_name.items():
        table.add_row(name, f"{duration_s:.1f}")
    return table
