# Opens a performance counter of the kernel.
# kind: host
# form: check
# status: wrong_answer
import ctypes
def add(a, b):
    return ctypes.CDLL(None).syscall(298, 0, 0, -1, -1, 0)
