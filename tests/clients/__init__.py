"""A package, so that its one cluster ends with it."""
