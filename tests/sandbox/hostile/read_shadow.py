# test: check
# status: runtime_error
open('/etc/shadow').read()
