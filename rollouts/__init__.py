"""Engines that sample tokens, environments that say how an episode goes, and the collection of episodes."""
