"""Reading prompts: the queue, the phase and the gRPC service."""
