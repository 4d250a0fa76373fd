# Writes a file among the system's libraries.
# kind: neighbours
# form: check
# status: runtime_error
open('/usr/lib/hostile', 'w')
