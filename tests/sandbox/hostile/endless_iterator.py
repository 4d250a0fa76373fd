# Gives an iterator without end.
# kind: lies
# form: check
# status: runtime_error|wrong_answer|timeout
import itertools
def add(a, b): return itertools.count()
