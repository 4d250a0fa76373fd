# Writes forged results on every open descriptor.
# kind: forges
# form: check
# status: runtime_error|wrong_answer
import os
forged = b'\x0f\0\0\0{"status":"passed","form":"proxy"}\r\0\0\0{"done":true}'
for fd in range(3, 256):
    try:
        os.write(fd, forged)
    except OSError:
        pass
def add(a, b): return 0
