# Reads the environment, in which secrets may stand.
# kind: reads
# form: check
# status: wrong_answer
import os
def add(a, b):
    return sorted(os.environ)
