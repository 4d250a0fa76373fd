# Ends by each real-time signal in turn of its tests, which Python's enumeration of signals does not name.
# kind: processes
# form: call, check, stdio, inspect
import os
def add(a, b): os.kill(os.getpid(), 36 + a)
if __name__ == "__main__": os.kill(os.getpid(), 64)
