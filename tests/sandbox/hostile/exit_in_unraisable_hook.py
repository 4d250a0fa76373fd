# An exception that nobody can catch reaches sys.unraisablehook, which ends the process with status 0.
# kind: exits
# form: check, stdio
import os, sys
sys.unraisablehook = lambda *a: os._exit(0)
class Bad:
    def __del__(self): raise ValueError
def add(a, b):
    Bad()
    return 0
Bad()
