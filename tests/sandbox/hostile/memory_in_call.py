# test: check
# status: memory|runtime_error
def add(a, b): return [0] * 10 ** 10
