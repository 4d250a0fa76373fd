# Forks eight times while it is loaded, so that 256 copies say that they are ready.
# kind: processes
# form: call, check, assert
import os
for _ in range(8):
    try: os.fork()
    except OSError: pass
def add(a, b): return 0
