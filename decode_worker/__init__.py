"""Writing answers: the handoffs coming in, the running batch, the outboxes and the service."""
