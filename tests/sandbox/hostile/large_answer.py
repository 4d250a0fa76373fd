# test: check
# status: runtime_error|wrong_answer|timeout|memory
def add(a, b): return 'x' * 300_000_000
