# Gives an int of a million digits.
# kind: lies
# form: check
# status: wrong_answer|runtime_error
def add(a, b): return 10 ** 1_000_000
