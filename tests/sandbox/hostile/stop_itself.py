# A stopped process must not hold up the batch.
# test: check
# status: timeout
import os, signal
os.kill(os.getpid(), signal.SIGSTOP)
