# Ignores the signal of the CPU limit.
# kind: resources
# form: check
# status: timeout
import signal
signal.signal(signal.SIGXCPU, signal.SIG_IGN)
while True: pass
