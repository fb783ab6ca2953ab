"""Where a member is on Ray: a placement group of one bundle, its ranks packed on one host."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


def place_of(
    name: str, bundle: Mapping[str, float], *, lifetime: str | None = None
) -> "PlacementGroupSchedulingStrategy":
    """A new group of that name; with a lifetime of "detached" it outlives whoever asked for it."""
    # Here and not above: Ray reads its settings when it is first imported.
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([dict(bundle)], strategy="STRICT_PACK", name=name, lifetime=lifetime)
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
