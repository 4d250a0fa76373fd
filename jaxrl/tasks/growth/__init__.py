"""How the cost of a function grows with its input, from measurements: BigO(Bench), arXiv 2503.15242.

fit.py finds the class of one curve, names.py says when two classes are the same. The rules and the numbers are those of
the benchmark's framework; the code is ours.
"""
