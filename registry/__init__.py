"""Who is in the cluster, and what the plan is: one Protocol, a Redis-compatible store behind it."""
