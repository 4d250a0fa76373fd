# Raises an exception whose text is asked for in vain: __str__ exits with status 0.
# kind: exits
# form: check
# status: runtime_error
class Evil(Exception):
    def __str__(self): raise SystemExit(0)
    __repr__ = __str__
def add(a, b): raise Evil
