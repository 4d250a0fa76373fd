# Ignores every signal that can be ignored, and never ends.
# kind: processes
# form: check
# status: timeout
import signal
for n in range(1, 65):
    try:
        signal.signal(n, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True: pass
