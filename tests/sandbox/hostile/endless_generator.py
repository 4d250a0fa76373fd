# Gives a generator of right answers without end.
# kind: lies
# form: check
# status: runtime_error|wrong_answer|timeout
def add(a, b):
    while True: yield 3
