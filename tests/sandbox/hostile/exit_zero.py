# Ends with exit status 0 before any test.
# kind: exits
# form: check
# status: runtime_error
import sys
sys.exit(0)
