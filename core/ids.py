"""Identifiers as distinct types, so that one kind is never passed for another."""

from typing import NewType

RequestId = NewType("RequestId", str)
HandoffId = NewType("HandoffId", str)
"""One request's (or one child's) handoff; the same over all attempts, told apart by the fence."""
InstanceId = NewType("InstanceId", str)
RouterId = NewType("RouterId", str)
Fingerprint = NewType("Fingerprint", str)
BlockId = NewType("BlockId", int)
TokenId = NewType("TokenId", int)
