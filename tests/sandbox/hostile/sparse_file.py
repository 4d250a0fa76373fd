# Makes a sparse file of a petabyte.
# kind: resources
# form: check
# status: runtime_error|wrong_answer
import os
fd = os.open('sparse', os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 2 ** 50)
