# test: check
# status: runtime_error
open('/usr/lib/hostile', 'w')
