# Gives a list that contains itself.
# kind: lies
# form: check
# status: runtime_error|wrong_answer
def add(a, b):
    x = []
    x.append(x)
    return x
