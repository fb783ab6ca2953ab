"""Who is in the cluster and what it is to be: one Protocol, a Redis-compatible store behind it."""
