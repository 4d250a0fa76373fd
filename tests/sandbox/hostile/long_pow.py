# Computes in one bytecode that never comes back to Python.
# kind: resources
# form: check
# status: timeout
def add(a, b): return 9 ** 9 ** 9
