# Reads its parent's memory by process_vm_readv().
# kind: reads
# form: check
# status: wrong_answer
import ctypes, os
def add(a, b):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(310, os.getppid(), 0, 0, 0, 0, 0)
    return ctypes.get_errno() * -1
