# test: check
# status: runtime_error
import os
os.setuid(0)
