# The process becomes one that ends well.
# test: check
# status: runtime_error
import os
os.execv('/bin/true', ['true'])
