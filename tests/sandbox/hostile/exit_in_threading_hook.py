# A thread fails, and threading.excepthook ends the process with status 0.
# kind: exits
# form: check, call
import os, threading
threading.excepthook = lambda *a: os._exit(0)
def fail(): raise ValueError
def add(a, b):
    t = threading.Thread(target=fail); t.start(); t.join()
    return 0
