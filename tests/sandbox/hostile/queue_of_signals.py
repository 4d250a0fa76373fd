# Fills the queue of pending real-time signals of its user, then blocks them all.
# kind: processes
# form: call, check
import ctypes, os, signal
def add(a, b):
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    for _ in range(100_000):
        if ctypes.CDLL(None).sigqueue(os.getpid(), 40, 0) < 0: break
    return 0
