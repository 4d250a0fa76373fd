# Forks in the call: two processes answer on one channel.
# kind: forges
# form: check
# status: wrong_answer|runtime_error
import os
def add(a, b):
    os.fork()
    return 0
