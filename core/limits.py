"""Hard bounds of what a client may ask, checked before anything is allocated."""

MAX_CLIENT_MESSAGE_BYTES = 4 * 1024 * 1024
"""gRPC's own default; one prompt of text never needs more."""
MAX_KV_FRAME_BYTES = 4 * 1024 * 1024
"""Payload of one segment."""
KV_FRAME_HEADER_BYTES = 64 * 1024
"""Headroom over the payload: the default receive limit of 4 MiB is below payload + header."""
MAX_CONTROL_MESSAGE_BYTES = 16 * 1024 * 1024
"""Router ↔ worker: a prompt as token ids, 5 bytes each, fits three million times over a context."""
MAX_METADATA_BYTES = 8 * 1024
MAX_NUM_CHOICES = 16
MAX_STOP_STRINGS = 64
MAX_STOP_STRING_CHARS = 64
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIAS = 1024
MAX_REQUEST_ID_CHARS = 128
MAX_CHAT_MESSAGES = 4096
MAX_TIMEOUT_S = 24 * 3600.0
DEFAULT_MAX_QUEUED = 256
"""Requests that may wait on one instance for a phase, unless its configuration says otherwise:
it refuses more, and a router places no more there."""
MAX_TEMPERATURE = 100.0
MAX_SEED = 2**64 - 1
MAX_LOGPROBS = 20
MAX_GRAMMAR_CHARS = 65_536
MAX_TENANT_CHARS = 64
MAX_PRIORITY = 10
"""Of either sign."""
