# test: check
# status: killed
import os
os.abort()
