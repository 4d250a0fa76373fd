# Recurses without end.
# kind: resources
# form: check
# status: runtime_error
def add(a, b): return add(b, a)
