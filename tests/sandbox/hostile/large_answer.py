# Gives a str of 300 million characters.
# kind: resources
# form: check
# status: runtime_error|wrong_answer|timeout|memory
def add(a, b): return 'x' * 300_000_000
