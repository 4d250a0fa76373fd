# Ends without any cleaning up; graders that look at the exit status take it for success.
# test: check
# status: runtime_error
import os
os._exit(0)
