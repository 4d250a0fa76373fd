# Raises SystemExit before any test.
# kind: exits
# form: check
# status: runtime_error
raise SystemExit
