# Reads the machine's passwords.
# kind: host
# form: check
# status: runtime_error
open('/etc/shadow').read()
