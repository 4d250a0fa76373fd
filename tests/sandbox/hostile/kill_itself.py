# Ends by SIGKILL, as the kernel does for want of memory.
# kind: exits
# form: check
# status: killed
import os, signal
os.kill(os.getpid(), signal.SIGKILL)
