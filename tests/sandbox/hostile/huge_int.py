# test: check
# status: wrong_answer|runtime_error
def add(a, b): return 10 ** 1_000_000
