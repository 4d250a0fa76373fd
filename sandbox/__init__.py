"""Programs and tests in, verdicts out. Knows nothing of tokens or models; standard library only."""
