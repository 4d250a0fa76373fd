# test: check
# status: runtime_error
raise SystemExit
