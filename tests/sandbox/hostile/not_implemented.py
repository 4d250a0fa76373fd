# test: check
# status: wrong_answer
def add(a, b): return NotImplemented
