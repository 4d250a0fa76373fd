"""Environments: each is one file with one class, which plays an episode from prompt to reward."""
