# test: check
# status: runtime_error
def add(a, b): return add(b, a)
