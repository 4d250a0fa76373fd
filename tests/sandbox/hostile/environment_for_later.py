# Sets variables that change later programs, in its own environment and through its parent's memory.
# kind: neighbours
# form: check, call
import ctypes, os
for name, value in (("PYTHONSTARTUP", "/tmp/x.py"), ("LD_PRELOAD", "/tmp/x.so"), ("PYTHONPATH", "/tmp"),
                    ("PYTHONHASHSEED", "1"), ("PYTHONWARNINGS", "error"), ("MALLOC_PERTURB_", "255")):
    os.environ[name] = value
    ctypes.CDLL(None).setenv(name.encode(), value.encode(), 1)
try: open(f"/proc/{os.getppid()}/environ", "w").write("LD_PRELOAD=/tmp/x.so")
except OSError: pass
def add(a, b): return 0
