"""Engines that sample tokens, environments that play episodes, and the collection of episodes."""
