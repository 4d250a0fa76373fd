# Raises an exception that is its own cause and context in a circle of 50,000, for whoever writes the chain.
# kind: resources
# form: call, assert, check
def add(a, b):
    first = last = ValueError("0")
    for i in range(50_000):
        new = ValueError(str(i)); new.__cause__ = last; last = new
    first.__cause__ = last
    raise last
