"""The load generator of `baton bench`: an open loop, and what it measures."""
