# test: check
# status: wrong_answer|runtime_error
def add(a, b): raise AssertionError('passed')
