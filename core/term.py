"""Which controller is obeyed: the newest that was heard of."""

from core.errors import StaleTerm


class Terms:
    """The highest term that a process was asked with; owned by its event loop."""

    def __init__(self) -> None:
        self._highest = 0

    @property
    def highest(self) -> int:
        """0: only people have asked, or nobody."""
        return self._highest

    def hear(self, term: int) -> None:
        """Whoever asks with `term` may be obeyed; 0 is a person, who is never too late.

        Raises StaleTerm when a controller that came later has asked before.
        """
        if 0 < term < self._highest:
            raise StaleTerm(
                f"term {term} is behind {self._highest}: a newer controller has asked here"
            )
        self._highest = max(self._highest, term)
