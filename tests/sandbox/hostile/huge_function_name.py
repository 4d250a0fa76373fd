# A function whose name has 30 million letters, in the traceback of its failure.
# kind: resources
# form: assert, call, check
def add(a, b):
    def fail(): raise ValueError
    fail.__code__ = fail.__code__.replace(co_name="a" * 30_000_000, co_qualname="b" * 30_000_000)
    fail()
