# Opens a userfaultfd, with which the kernel can be made to wait.
# kind: host
# form: check
# status: wrong_answer
import ctypes
def add(a, b):
    return ctypes.CDLL(None).syscall(323, 1)
