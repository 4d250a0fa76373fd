# Registers a hook that would turn a failure into exit status 0.
# kind: exits
# form: check
# status: runtime_error
import atexit, os
atexit.register(lambda: os._exit(0))
raise ValueError
