"""Planning from what is served: when to look for another plan, and when to leave it alone.

A shift has to last: it is suspected at one look, and believed once the whole window has come after
that look, and both the window and its newest part still show the shift. The history that the new
plan is made from then holds nothing from before the shift.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from planner.online.ground import Ground, Sizes
from planner.online.history import can_be_played, history_of
from planner.online.replan import Bounds, Margins, Replan, replan
from planner.online.shift import (
    MIN_REQUESTS,
    STILL,
    TO_BEGIN,
    TO_LAST,
    Bar,
    Compared,
    compared,
    newest,
)
from planner.online.window import Recent, merged

FULL = 0.95
"""Share of a window that has to be there: what is polled does not come to the second."""


class Stage(StrEnum):
    """Where the watch is."""

    LEARNING = "learning"
    """The window is not full yet."""
    STEADY = "steady"
    SUSPECTING = "suspecting"
    """Something has shifted; whether it lasts is not known."""
    COOLING_DOWN = "cooling down"
    PLANNED = "planned"
    """Another plan was looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watching:
    """How long to look before something is done."""

    window_s: float = 600.0
    """Long enough for several bursts, or chance would be all there is to see; short enough that a
    shift is acted on within a quarter of an hour."""
    num_looks: int = 3
    """That a shift shows at, one after the other, beside that it lasts a whole window."""
    num_reference_windows: float = 4.0
    """How long the reference may grow to, by what came while nothing had shifted: of bursts that
    differ by themselves, more are known. It does not follow for ever, or a slow drift would never
    show."""
    cool_down_s: float = 300.0
    """Between two changes: longer than a change takes, so that it is judged by its effect."""
    to_begin: Bar = field(default=TO_BEGIN)
    to_last: Bar = field(default=TO_LAST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Of one look."""

    stage: Stage
    change: Sizes | None
    """What to change to; None: nothing is to be done."""
    replan: Replan | None
    """Where another plan was looked for, also in a dry run."""
    attainment: float
    """Of the window, 0 to 1."""
    rate_per_s: float
    reasons: tuple[str, ...]
    """For people."""


class Online:
    """Asked again and again; changes nothing itself."""

    def __init__(
        self,
        ground: Ground,
        bounds: Bounds,
        *,
        watching: Watching | None = None,
        margins: Margins | None = None,
        reference: Recent | None = None,
        dry_run: bool = False,
    ) -> None:
        """`reference`: what the plan in force was made from. None: not known, and once there is a
        whole window another plan is looked for."""
        self._ground, self._bounds = ground, bounds
        self._watching = watching or Watching()
        self._margins = margins or Margins()
        self._reference = reference
        self._seen: Recent | None = None
        self._dry_run = dry_run
        self._suspected_at_s: float | None = None
        self._num_looks = 0
        self._changed_at_s = float("-inf")
        self._in_force: Sizes | None = None

    def look(self, now_s: float, recent: Recent, in_force: Sizes) -> Decision:
        """`in_force`: what the plan asks for, whether or not all of it is there yet.

        Takes milliseconds, but for those looks that look for another plan: they take seconds.
        """
        self._notice(now_s, in_force)
        if not self._is_enough(recent):
            return self._wait(Stage.LEARNING, recent, self._missing(recent))
        if (left_s := self._changed_at_s + self._watching.cool_down_s - now_s) > 0:
            return self._wait(Stage.COOLING_DOWN, recent, f"another {left_s:.0f} s")
        if self._reference is None:
            why = "what the plan in force was made from is not known"
            return self._plan(now_s, recent, in_force, (why,))
        return self._watch(now_s, recent, in_force, self._reference)

    def _notice(self, now_s: float, in_force: Sizes) -> None:
        """Someone else changed the plan: it has its time, too."""
        if self._in_force is not None and in_force != self._in_force:
            self._changed_at_s, self._suspected_at_s = now_s, None
        self._in_force = in_force

    def _is_enough(self, recent: Recent) -> bool:
        is_full = recent.span_s >= FULL * self._watching.window_s
        is_known = self._reference is not None or self._is_settled(recent)
        return is_full and is_known and can_be_played(recent)

    def _is_settled(self, recent: Recent) -> bool:
        """The first window is what later ones are compared with: its halves have to be alike, and
        hold requests enough to tell."""
        middle_s = (recent.begin_s + recent.end_s) / 2
        halves = (recent.between(recent.begin_s, middle_s), recent.between(middle_s, recent.end_s))
        found = compared(*halves, self._watching.to_begin)
        return bool(found) and not _shifted(found)

    def _missing(self, recent: Recent) -> str:
        return (
            f"{recent.num_requests} requests in {recent.span_s:.0f} s; needed is a window of "
            f"{self._watching.window_s:.0f} s of alike halves with {MIN_REQUESTS} answers each"
        )

    def _watch(self, now_s: float, recent: Recent, in_force: Sizes, reference: Recent) -> Decision:
        watching = self._watching
        begun = compared(reference, recent, watching.to_begin)
        lasting = compared(reference, recent, watching.to_last)
        if not begun:
            return self._wait(Stage.STEADY, recent, f"fewer than {MIN_REQUESTS} requests")
        if not _shifted(lasting if self._suspected_at_s is not None else begun):
            self._suspected_at_s, self._num_looks = None, 0
            self._learn(recent, reference)
            return self._wait(Stage.STEADY, recent, *map(str, begun))
        if self._suspected_at_s is None:
            self._suspected_at_s = recent.end_s
        self._num_looks += 1
        lasted = recent.begin_s >= self._suspected_at_s and self._num_looks >= watching.num_looks
        still = compared(reference, newest(recent), STILL)
        if not (lasted and _names(begun) & _names(still)):
            since_s = recent.end_s - self._suspected_at_s
            return self._wait(
                Stage.SUSPECTING, recent, f"for {since_s:.0f} s", *map(str, _shifted(lasting))
            )
        return self._plan(now_s, recent, in_force, tuple(map(str, _shifted(begun))))

    def _learn(self, recent: Recent, reference: Recent) -> None:
        """What has left the window in peace is part of what is normal."""
        seen, self._seen = self._seen, recent
        longest_s = self._watching.num_reference_windows * self._watching.window_s
        is_next = seen is not None and seen.begin_s <= reference.end_s < recent.begin_s
        if seen is not None and is_next and reference.span_s < longest_s:
            self._reference = merged(reference, seen.between(reference.end_s, recent.begin_s))

    def _plan(
        self, now_s: float, recent: Recent, in_force: Sizes, why: tuple[str, ...]
    ) -> Decision:
        """Whatever comes of it, it is from now on what the plan in force rests on."""
        history = history_of(recent, slo=self._ground.slo, target=self._ground.target)
        found = replan(self._ground, history, in_force, self._bounds, self._margins)
        self._reference = self._seen = recent
        self._suspected_at_s, self._num_looks = None, 0
        change = found.after if found.is_change and not self._dry_run else None
        if change is not None:
            self._changed_at_s, self._in_force = now_s, change
        is_told = found.is_change and self._dry_run
        told = (f"dry run: {found.after} would be put in place",) if is_told else ()
        return Decision(
            stage=Stage.PLANNED,
            change=change,
            replan=found,
            attainment=recent.attainment(self._ground.slo),
            rate_per_s=recent.rate_per_s,
            reasons=(*why, *found.reasons, *told),
        )

    def _wait(self, stage: Stage, recent: Recent, *why: str) -> Decision:
        return Decision(
            stage=stage,
            change=None,
            replan=None,
            attainment=recent.attainment(self._ground.slo),
            rate_per_s=recent.rate_per_s,
            reasons=(stage.value, *why),
        )


def _names(all_compared: tuple[Compared, ...]) -> set[str]:
    return {each.name for each in _shifted(all_compared)}


def _shifted(all_compared: tuple[Compared, ...]) -> tuple[Compared, ...]:
    return tuple(each for each in all_compared if each.is_shifted)
