# Ends by os._exit(0) within the call that is tested.
# kind: exits
# form: check
# status: runtime_error
import os
def add(a, b):
    os._exit(0)
