# A hook that would turn a failure into exit status 0.
# test: check
# status: runtime_error
import atexit, os
atexit.register(lambda: os._exit(0))
raise ValueError
