# Catches every exception that is meant to end its loop.
# kind: resources
# form: check
# status: timeout
def add(a, b):
    while True:
        try:
            while True: pass
        except BaseException:
            pass
