# Makes a POSIX message queue, which outlives the process.
# kind: neighbours
# form: check
# status: wrong_answer
import ctypes
def add(a, b):
    return ctypes.CDLL(None).syscall(240, b'hostile', 66, 0o666, None)
