# Copies /dev/zero, a full pipe and sockets over every descriptor, the standard ones and the channel's included.
# kind: forges
# form: call, check, stdio
import os
zero = os.open("/dev/zero", os.O_RDWR)
def add(a, b):
    for fd in range(64):
        try: os.dup2(zero, fd)
        except OSError: pass
    return 0
if __name__ == "__main__":
    for fd in range(64):
        try: os.dup2(zero, fd)
        except OSError: pass
