"""Output tokens of one model as they leave: how many, and how far apart."""

from dataclasses import dataclass

from router.buckets import Buckets


@dataclass(slots=True, eq=False)
class WrittenTokens:
    """Plain numbers, which the metrics read when they are scraped: every token comes by here."""

    gaps: Buckets
    """Seconds before each token but a choice's first."""
    num_tokens: int = 0

    def wrote(self, num_tokens: int, gap_s: float | None) -> None:
        """So many left at once, so long after the ones before; None: the choice's first.

        Tokens that leave together share their gap: each counts with its part of it.
        """
        self.num_tokens += num_tokens
        if gap_s is not None:
            self.gaps.observe(gap_s / num_tokens, num_tokens)
