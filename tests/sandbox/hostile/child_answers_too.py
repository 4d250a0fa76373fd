# Two processes answer on one channel.
# test: check
# status: wrong_answer|runtime_error
import os
def add(a, b):
    os.fork()
    return 0
