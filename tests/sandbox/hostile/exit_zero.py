# An exit status of 0 is no pass.
# test: check
# status: runtime_error
import sys
sys.exit(0)
