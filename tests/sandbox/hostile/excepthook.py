# Ends with status 0 from sys.excepthook, after an exception.
# kind: exits
# form: check
# status: runtime_error
import os, sys
sys.excepthook = lambda *a: os._exit(0)
raise ValueError('x')
