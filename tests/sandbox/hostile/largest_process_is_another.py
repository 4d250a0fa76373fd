# Fills shared memory that counts in no process' own size from a small fresh Python: the kernel then ends the largest one.
# kind: resources
# form: assert
# limits: {"wall_s": 6, "cpu_s": 4}
import os, sys
CODE = """
import mmap, os, time
for _ in range(6):
    if os.fork() == 0:
        m = mmap.mmap(-1, 200 << 20)
        for i in range(0, 200 << 20, 4 << 20):
            for j in range(i, i + (4 << 20), 4096): m[j] = 1
            m.madvise(mmap.MADV_DONTNEED, i, 4 << 20)
        time.sleep(60)
time.sleep(60)
"""
def add(a, b):
    try: os.set_inheritable(3, True)  # the channel stays open: nobody answers, nobody sees an end
    except OSError: pass
    os.execv(sys.executable if os.path.exists(sys.executable) else "/usr/bin/python3", ["python", "-I", "-S", "-c", CODE])
