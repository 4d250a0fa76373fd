# Gives a list nested 100,000 deep, to overflow whoever encodes it.
# kind: lies
# form: check
# status: runtime_error|wrong_answer
def add(a, b):
    x = []
    for _ in range(100_000): x = [x]
    return x
