# Computes without end in the call that is tested.
# kind: resources
# form: check
# status: timeout
def add(a, b):
    while True: pass
