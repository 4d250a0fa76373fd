# Prints the answer to one test, then fails, and hides it by sys.excepthook.
# kind: exits
# form: stdio
# status: runtime_error|wrong_answer
import os, sys
sys.excepthook = lambda *a: os._exit(0)
print(3)
raise ValueError('x')
