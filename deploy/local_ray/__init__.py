"""A Ray of this machine that outlives the command that started it."""
