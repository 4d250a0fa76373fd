# test: call
# status: wrong_answer
def add(a, b): return float('nan')
