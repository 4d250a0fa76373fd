# Callbacks of sys.monitoring (3.12) or a trace function raise SystemExit(0) at the first line of a test.
# kind: exits
# form: check, inspect
import sys
def trace(frame, event, arg):
    if frame.f_code.co_name in ("check", "<module>"):
        raise SystemExit(0)
    return trace
sys.settrace(trace)
def add(a, b): return 0
