# One bytecode that never comes back to Python.
# test: check
# status: timeout
def add(a, b): return 9 ** 9 ** 9
