# test: check
# status: timeout
def add(a, b):
    while True: pass
