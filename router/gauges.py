"""What the metrics read when they are scraped: instances, pools, who runs and who waits."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from core.load import Load
from core.member import Role
from policy.table import ROLE_CODES
from policy.utilisation import fullness, utilisation, wanted_instances
from router.admission import Admission
from router.link import Health, InstanceLink
from router.membership import Membership
from router.spec import RouterSpec

_INSTANCE = ("instance", "pool", "model")
_GAUGES: Mapping[str, tuple[str, str]] = {
    # field of Load: name, help
    "num_blocks": ("blocks", "KV blocks in all."),
    "num_free_blocks": ("free_blocks", "KV blocks that could be allocated now, cached ones too."),
    "num_cached_blocks": ("cached_blocks", "Free blocks that hold a prefix nobody uses now."),
    "num_prefilling": ("prefilling_requests", "Requests that wait for prefill or are prefilled."),
    "num_pending_prompt_tokens": (
        "pending_prompt_tokens",
        "Prompt tokens accepted and not yet computed.",
    ),
    "num_incoming": ("incoming_requests", "Handoffs that wait for room or for bytes."),
    "num_decoding": ("decoding_requests", "Requests in the running decode batch."),
    "num_context_tokens": ("context_tokens", "Context of the running decode batch."),
    "num_swapped": ("swapped_requests", "Answers whose KV waits in host memory."),
}


class RouterGauges(Collector):
    """Reads the view; costs nothing in between."""

    def __init__(self, membership: Membership, admission: Admission, spec: RouterSpec) -> None:
        self._membership = membership
        self._admission = admission
        # Without a target: from there on, instances of the other pool would help.
        self._prefill_target_s = spec.config.slo_ttft_s or spec.config.help_above_s
        self._max_decoding = spec.max_decoding

    def describe(self) -> Iterable[Metric]:
        """Not by collecting: nothing needs to be known when this is registered."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """As things are now."""
        admission = self._admission
        yield GaugeMetricFamily(
            "baton_requests_running", "Requests under way.", value=admission.num_running
        )
        yield GaugeMetricFamily(
            "baton_requests_queued", "Requests that wait for admission.", value=admission.num_queued
        )
        links = self._membership.links
        yield _connected(links)
        loads = [(_labels(link), link.sight.load) for link in links]
        for field, (name, text) in _GAUGES.items():
            family = GaugeMetricFamily(f"baton_instance_{name}", text, labels=_INSTANCE)
            for labels, load in loads:
                family.add_metric(labels, getattr(load, field))
            yield family
        yield _hit_ratio(loads)
        yield from self._pools()

    def _pools(self) -> Iterator[Metric]:
        view = self._membership.view
        table = view.fleet.table
        full = fullness(
            view.observed.model,
            table,
            prefill_target_s=self._prefill_target_s,
            max_decoding=self._max_decoding,
        )
        instances = GaugeMetricFamily(
            "baton_pool_instances", "Instances that take work.", labels=("pool",)
        )
        used = GaugeMetricFamily(
            "baton_pool_utilisation_ratio",
            "Mean fullness of a pool's instances, 0 to 1; of each the largest of: predicted"
            " seconds of accepted prompts over their target, decode slots in use, blocks in use.",
            labels=("pool",),
        )
        wanted = GaugeMetricFamily(
            "baton_pool_wanted_instances",
            "Instances that the pool's work of now would use to 70 %.",
            labels=("pool",),
        )
        for role in (Role.PREFILL, Role.DECODE, Role.MIXED):
            of_role = table.role == ROLE_CODES[role]
            # Rows that nobody has are of role 0, and hold no block.
            if not (of_role & (table.num_blocks > 0)).any():
                continue
            pool = of_role & table.alive & ~table.draining
            instances.add_metric((role,), int(pool.sum()))
            used.add_metric((role,), utilisation(full, pool))
            wanted.add_metric((role,), wanted_instances(full, pool))
        yield from (instances, used, wanted)


def _labels(link: InstanceLink) -> tuple[str, str, str]:
    member = link.member
    return member.instance_id, member.role, member.model


def _connected(links: Iterable[InstanceLink]) -> Metric:
    family = GaugeMetricFamily(
        "baton_instance_connected", "1 while the router's link to it is up.", labels=_INSTANCE
    )
    for link in links:
        family.add_metric(_labels(link), float(link.health is Health.UP))
    return family


def _hit_ratio(loads: Iterable[tuple[tuple[str, str, str], Load]]) -> Metric:
    family = GaugeMetricFamily(
        "baton_instance_prefix_hit_ratio",
        "Prompt tokens found in its prefix cache over those looked up, since its start; 0 to 1.",
        labels=_INSTANCE,
    )
    for labels, load in loads:
        family.add_metric(labels, load.num_hit_tokens / max(1, load.num_queried_tokens))
    return family
