# Gives a set whose building takes quadratic time in whoever reads it.
# kind: resources
# form: call
# status: runtime_error|wrong_answer|timeout
def add(a, b): return {i * (2 ** 61 - 1) for i in range(60_000)}
