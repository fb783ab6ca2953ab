"""Names of KV blocks: equal for equal tokens after equal tokens, and known to the cluster alone."""

import array
import hashlib
from collections.abc import Sequence
from typing import NewType

BlockHash = NewType("BlockHash", bytes)
"""16 bytes. Names one full block of a request together with everything before it."""

HASH_BYTES = 16
KEY_BYTES = 32


class PrefixHasher:
    """Chains keyed BLAKE2b over blocks of tokens.

    Without the key nobody can name a block, so nobody can find a collision or probe for another's
    prompt by its hash; the tenant is in the chain's root, so tenants share nothing.
    """

    def __init__(self, key: bytes, block_size: int) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {KEY_BYTES} bytes is needed, got {len(key)}")
        self._key = key
        self._block_size = block_size

    def extend(
        self, tenant: str, chain: Sequence[BlockHash], token_ids: Sequence[int]
    ) -> list[BlockHash]:
        """Hashes of the full blocks of `token_ids` that come after those of `chain`.

        `token_ids` are all tokens of the request from the first; a last block that is not full
        has no name.
        """
        size = self._block_size
        parent = chain[-1] if chain else self._hash(tenant.encode(), salt=b"", person=b"tenant")
        added = []
        for start in range(len(chain) * size, len(token_ids) - size + 1, size):
            block = array.array("q", token_ids[start : start + size]).tobytes()
            # The parent is exactly as long as BLAKE2b's salt.
            parent = self._hash(block, salt=parent, person=b"block")
            added.append(parent)
        return added

    def _hash(self, data: bytes, *, salt: bytes, person: bytes) -> BlockHash:
        digest = hashlib.blake2b(
            data, digest_size=HASH_BYTES, key=self._key, salt=salt, person=person
        )
        return BlockHash(digest.digest())
