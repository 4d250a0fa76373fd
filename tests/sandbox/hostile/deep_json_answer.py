# Sends a million opening brackets: a reader that recurses without bound would crash.
# kind: forges
# form: check
# status: runtime_error|wrong_answer
import os, struct
def add(a, b):
    data = b'[' * 1000000
    os.write(3, struct.pack('<I', len(data)) + data)
    return 3
