# Sends SIGKILL to all processes that it may signal.
# kind: processes
# form: check
# status: wrong_answer|killed|timeout|runtime_error
import os, signal
def add(a, b):
    try:
        os.kill(-1, signal.SIGKILL)
    except OSError:
        pass
    return 0
