# Calls quit() before any test.
# kind: exits
# form: check
# status: runtime_error
quit()
