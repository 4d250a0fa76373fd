# Becomes /bin/true, which ends well.
# kind: exits
# form: check
# status: runtime_error
import os
os.execv('/bin/true', ['true'])
