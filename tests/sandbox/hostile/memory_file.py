# Makes a file in memory, which no limit of a process counts.
# kind: host
# form: check
# status: runtime_error
import os
os.memfd_create('x')
