# Catches its own error and gives None.
# kind: lies
# form: check
# status: wrong_answer
def add(a, b):
    try:
        return undefined
    except BaseException:
        return None
