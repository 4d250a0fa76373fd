"""Software engineering on real files: SWE-RL (arXiv 2502.18449) and its pipeline, Agentless mini.

edits.py is the answer's format and what it does to files; reward.py compares two changes; unified.py reads, writes and
applies unified diffs; mining.py makes problems of a git history; agentless.py chooses files and patches.
"""
