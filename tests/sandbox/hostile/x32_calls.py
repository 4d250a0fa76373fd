# Makes forbidden system calls under their other numbers.
# kind: host
# form: check
# status: wrong_answer|killed
import ctypes
def add(a, b):
    return ctypes.CDLL(None).syscall(0x40000000 + 101, 0, 0, 0, 0)
