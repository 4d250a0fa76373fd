# Answers with a list of 40 levels in each of which one object stands twice: a few hundred bytes, 2**40 items as text.
# kind: resources
# form: call, assert, check
def add(a, b):
    value = [0]
    for _ in range(40): value = [value, value]
    return value
