# True == 1, but it is no number.
# test: call
# status: wrong_answer
def add(a, b): return True if a + b == 3 else 10
