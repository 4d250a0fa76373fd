# test: stdio
# status: runtime_error
import os, sys
sys.excepthook = lambda *a: os._exit(0)
print(3)
raise ValueError('x')
