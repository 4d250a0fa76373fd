# Gives NaN, for which every comparison is false.
# kind: lies
# form: call
# status: wrong_answer
def add(a, b): return float('nan')
