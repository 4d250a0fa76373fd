# Announces a message of 2 GiB on the channel of the answers.
# kind: forges
# form: check
# status: runtime_error|wrong_answer
import os
def add(a, b):
    os.write(3, (2 ** 31).to_bytes(4, 'little'))
    return 3
