"""Generators of 33 kinds of questions with one right answer or a checker, in the spirit of SymBench (arXiv 2502.04350).

The kinds are those that the papers name; the generators and checkers are ours, so that scores are not comparable with
the papers'. A kind is a function of a random number generator: strings.py, numbers.py, games.py, plans.py.
"""

from jaxrl.tasks.native import games, numbers, plans, strings

KINDS = {**strings.KINDS, **numbers.KINDS, **games.KINDS, **plans.KINDS}
