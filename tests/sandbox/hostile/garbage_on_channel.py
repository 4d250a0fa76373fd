# Sends what is no message on the channel of the answers.
# kind: forges
# form: check
# status: runtime_error|wrong_answer
import os
def add(a, b):
    os.write(3, b'\xff' * 4096)
    return 3
