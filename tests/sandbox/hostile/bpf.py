# Loads a program into the kernel with bpf().
# kind: host
# form: check
# status: wrong_answer
import ctypes
def add(a, b):
    return ctypes.CDLL(None).syscall(321, 0, 0, 0)
