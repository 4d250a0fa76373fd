# Becomes root.
# kind: host
# form: check
# status: runtime_error
import os
os.setuid(0)
