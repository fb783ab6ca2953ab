"""Every key Baton keeps in a store: one table, one name per family."""

import re
from dataclasses import dataclass

from core.errors import ConfigError
from core.ids import InstanceId

_CLUSTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFamily:
    """What one kind of key holds and when it goes."""

    suffix: str
    """After `baton:{cluster}:`; a final `*` stands for an instance id, or a tenant."""
    holds: str
    expires: bool
    """Whether the store drops it by itself once nobody announces any more."""


FAMILIES = (
    KeyFamily(suffix="member:*", holds="a Member as JSON", expires=True),
    KeyFamily(suffix="members", holds="sorted set: id by expiry, store's ms", expires=True),
    KeyFamily(suffix="memory", holds="random word; another one: all was lost", expires=True),
    KeyFamily(suffix="leader", holds="term, name and address of who leads", expires=True),
    KeyFamily(suffix="term", holds="the same of who was last to lead", expires=False),
    KeyFamily(suffix="deployment", holds="text: what the cluster is to be", expires=False),
    KeyFamily(suffix="settings", holds="list: editions of the settings", expires=False),
    KeyFamily(suffix="settings-version", holds="of the newest edition", expires=False),
    KeyFamily(suffix="quota:*", holds="hash: router by share, demand and expiry", expires=True),
    KeyFamily(suffix="shared-key", holds="secret behind the names of KV blocks", expires=False),
)


class Keys:
    """The names of one cluster's keys and its channel.

    The braces are a hash tag: in a clustered store all of them live in one slot, as the scripts
    over several keys require.
    """

    def __init__(self, cluster: str) -> None:
        if not _CLUSTER.fullmatch(cluster):
            raise ConfigError(("cluster must be 1 to 64 of letters, digits and ._-",))
        self.prefix = f"baton:{{{cluster}}}:"
        self.member_prefix = f"{self.prefix}member:"
        self.members = f"{self.prefix}members"
        self.memory = f"{self.prefix}memory"
        self.leader = f"{self.prefix}leader"
        self.term = f"{self.prefix}term"
        self.deployment = f"{self.prefix}deployment"
        self.shared_key = f"{self.prefix}shared-key"
        self.settings = f"{self.prefix}settings"
        self.settings_version = f"{self.prefix}settings-version"
        self.quota_prefix = f"{self.prefix}quota:"
        self.changes_channel = f"{self.prefix}changes"

    def member(self, instance_id: InstanceId) -> str:
        """Where the record of one member lives."""
        return self.member_prefix + instance_id

    def quota(self, tenant: str) -> str:
        """Where the leases of one tenant's quota live; the one without a name has one too."""
        return f"{self.quota_prefix}={tenant}"

    def declares(self, key: str) -> bool:
        """Whether `key` belongs to a family of this cluster."""
        return any(self._in_family(key, family.suffix) for family in FAMILIES)

    def _in_family(self, key: str, suffix: str) -> bool:
        if suffix.endswith("*"):
            start = self.prefix + suffix[:-1]
            return key.startswith(start) and len(key) > len(start)
        return key == self.prefix + suffix
