"""Text ↔ tokens: tokenizer, chat templates, incremental detokenization, stop strings."""
