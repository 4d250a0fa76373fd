# Raises an exception whose arguments, notes and text have a hundred megabytes.
# kind: resources
# form: assert, call, impure
class Long(ValueError):
    def __str__(self): return "x" * 100_000_000
def add(a, b):
    error = Long("y" * 100_000_000)
    error.add_note("z" * 50_000_000)
    raise error
