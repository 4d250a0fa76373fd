# Gives True for 1: they are equal, but True is no number.
# kind: lies
# form: call
# status: wrong_answer
def add(a, b): return True if a + b == 3 else 10
