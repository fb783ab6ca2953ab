"""Many steps of an unchanged decode batch at once, in whole picoseconds.

Step i (from 1) of a batch whose context is c before the first takes base + slope · (c + i · batch):
each answer grows by one token. The sum over k steps is a polynomial in k, exact in integers.
"""

import numpy as np

MAX_LEAP = 1 << 14
"""Steps: the sum stays far below 2**63 for a batch of 1,024 and a million picoseconds a token."""


def span_ps(base_ps: int, slope_ps: int, context: int, batch: int, num_steps: int) -> int:
    """Of the first `num_steps` steps."""
    grown = batch * (num_steps * (num_steps + 1) // 2)
    return num_steps * base_ps + slope_ps * (num_steps * context + grown)


def steps_until(base_ps: int, slope_ps: int, context: int, batch: int, span: int) -> int:
    """The fewest steps that take at least `span` picoseconds; 0 for none."""
    if span <= 0:
        return 0
    # a k² + b k = span; the root is a guess that whole numbers correct.
    a = 0.5 * slope_ps * batch
    b = float(base_ps) + slope_ps * (context + 0.5 * batch)
    guess = int(2.0 * span / (b + np.sqrt(b * b + 4.0 * a * span)))
    steps = max(guess, 1)
    while steps > 1 and span_ps(base_ps, slope_ps, context, batch, steps - 1) >= span:
        steps -= 1
    while span_ps(base_ps, slope_ps, context, batch, steps) < span:
        steps += 1
    return steps
