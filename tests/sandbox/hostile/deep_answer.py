# test: check
# status: runtime_error|wrong_answer
def add(a, b):
    x = []
    for _ in range(100_000): x = [x]
    return x
