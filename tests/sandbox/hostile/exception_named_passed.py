# Raises an exception of its own that is called "passed".
# kind: lies
# form: check
# status: runtime_error
class passed(BaseException): pass
def add(a, b): raise passed('passed')
