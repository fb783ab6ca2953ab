"""Moving KV: the handoff's two ends without IO, and the streams that walk them."""
