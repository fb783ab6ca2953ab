"""Measured claims: every benchmark runs its baseline beside what it measures, and prints ratios."""
