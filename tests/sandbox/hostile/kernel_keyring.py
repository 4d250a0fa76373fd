# Stores a key in the kernel's keyring, which outlives the process.
# kind: host
# form: check
# status: wrong_answer
import ctypes
def add(a, b):
    return ctypes.CDLL(None).syscall(248, b'user', b'hostile', b'x', 1, -3)
