"""Reinforcement learning for code models in JAX."""
