# Gives NotImplemented, which is true.
# kind: lies
# form: check
# status: wrong_answer
def add(a, b): return NotImplemented
