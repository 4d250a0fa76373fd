# Ends by abort(), as an interpreter does that has found itself broken.
# kind: exits
# form: check
# status: killed
import os
os.abort()
