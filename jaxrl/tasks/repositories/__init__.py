"""Tasks of SWE-bench's kind: an issue in a repository at a commit, and tests that must pass once it is mended.

Jimenez et al., arXiv 2310.06770; Yang et al. (Multimodal), arXiv 2410.03859. `rows` reads the tasks, `attempt` runs a
patch in a working tree of the sandbox, `logs` reads what test runners print, `grade` decides.
"""
