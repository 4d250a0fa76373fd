# Ends by reading address 0.
# kind: exits
# form: check
# status: killed
import ctypes
ctypes.string_at(0)
