"""The HTTP front door: the APIs that OpenAI's clients and vLLM's users speak."""
