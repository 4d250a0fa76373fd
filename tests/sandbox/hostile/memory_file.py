# test: check
# status: runtime_error
import os
os.memfd_create('x')
