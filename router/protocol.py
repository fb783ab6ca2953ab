"""Which version of the contract this router speaks."""

PROTOCOL_VERSION = 1
