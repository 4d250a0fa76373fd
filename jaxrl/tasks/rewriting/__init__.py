"""Transformations of Python programs: 16 rules, programs that they apply to and that they must leave alone, scores."""
