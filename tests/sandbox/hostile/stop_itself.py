# Stops itself: it must not hold up the others.
# kind: processes
# form: check
# status: timeout
import os, signal
os.kill(os.getpid(), signal.SIGSTOP)
