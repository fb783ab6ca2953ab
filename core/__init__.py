"""The words, numbers and state tables every other package shares; standard library only."""
