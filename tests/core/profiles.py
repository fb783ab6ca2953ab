"""A small profile to read, write, spoil and compare."""

from dataclasses import replace

from core.profile import (
    ALONE,
    LOADED,
    Condition,
    CopyRate,
    DecodeFit,
    FitError,
    LayoutProfile,
    Machine,
    Point,
    PrefillFit,
    Profile,
    Saturation,
    StepShape,
    Subject,
)

ERROR = FitError(num_points=1, median=0.02, max=0.04)


def point(kind: str, batch: int, num_tokens: int, time_s: float) -> Point:
    """Measured three times within 10 %."""
    cached = 63 if kind == "decode" else 0
    shape = StepShape(kind=kind, batch=batch, num_tokens=num_tokens, num_cached_tokens=cached)
    return Point(
        shape=shape, held_out=False, time_s=time_s, low_s=0.95 * time_s, high_s=1.05 * time_s
    )


def condition(name: str = ALONE, slowdown: float = 1.0, interval: float = 0.05) -> Condition:
    """Ten prefill steps of 10 ms a token, and one decode step."""
    prompts = [point("prefill", 1, 16 * n, 0.16 * n * slowdown) for n in range(1, 11)]
    return Condition(
        name=name,
        num_rounds=3,
        points=(*prompts, point("decode", 4, 1, 0.05 * slowdown)),
        copies=(
            CopyRate(
                kind="gather",
                num_bytes=1000,
                bytes_per_s=2e9,
                low_bytes_per_s=1e9,
                high_bytes_per_s=3e9,
            ),
        ),
        prefill=PrefillFit(base_s=0.0, per_token_s=0.01 * slowdown, per_pair_s=0.0),
        decode=DecodeFit(
            batches=(1, 4),
            batch_s=(0.04, 0.05),
            num_context_tokens=(0, 256),
            context_s=(0.0, 0.01),
        ),
        prefill_error=ERROR,
        decode_error=ERROR,
        error=ERROR,
        interval=interval,
    )


def profile(*conditions: Condition, l_m: tuple[int, int, int] = (96, 128, 160)) -> Profile:
    """One layout."""
    low, middle, high = l_m
    return Profile(
        subject=Subject(
            model="tiny",
            weights_digest="abc",
            dtype="float32",
            device="cpu",
            machine=Machine(cpu="a CPU", num_cores=2, num_threads=1),
            block_size=16,
            kv_bytes_per_token=64,
        ),
        measured_at="2026-01-01T00:00:00+00:00",
        command="baton profile",
        layouts=(
            LayoutProfile(
                tp=1,
                pp=1,
                saturation=Saturation(l_m_tokens=middle, low_tokens=low, high_tokens=high),
                conditions=conditions or (condition(), condition(LOADED, slowdown=2.0)),
            ),
        ),
    )


def slowed(given: Profile, num_points: int, by: float) -> Profile:
    """The first points of every condition take `by` times as long."""
    layout = given.layouts[0]
    conditions = tuple(
        replace(
            c,
            points=tuple(
                replace(p, time_s=p.time_s * by, low_s=p.low_s * by, high_s=p.high_s * by)
                if i < num_points
                else p
                for i, p in enumerate(c.points)
            ),
        )
        for c in layout.conditions
    )
    return replace(given, layouts=(replace(layout, conditions=conditions),))
