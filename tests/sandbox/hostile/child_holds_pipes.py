# Leaves a child that keeps stdout open: waiting for its end would hang.
# kind: processes
# form: check
# status: wrong_answer
import os, time
def add(a, b):
    if os.fork() == 0:
        time.sleep(1000)
    return 0
