# Raises a group of 10,000 nested exceptions, whose traceback takes long to write.
# kind: resources
# form: call, assert
def add(a, b):
    error = ValueError("x")
    for i in range(10_000):
        error = ExceptionGroup(str(i), [error])
    raise error
