# test: check
# status: runtime_error
class passed(BaseException): pass
def add(a, b): raise passed('passed')
