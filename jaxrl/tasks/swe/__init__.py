"""Software engineering on real files: SWE-RL (arXiv 2502.18449) and its pipeline, Agentless mini.

reward.py compares two changes; mining.py makes problems of a git history; agentless.py chooses files and patches. The
answer's format and unified diffs are in rollouts/blocks.py and rollouts/unified.py.
"""
