# A timer whose signal handler ends the process with status 0 while a test runs.
# kind: exits
# form: call, assert, inspect
import os, signal, time
signal.signal(signal.SIGALRM, lambda *a: os._exit(0))
def add(a, b):
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    time.sleep(0.5)
    return 0
