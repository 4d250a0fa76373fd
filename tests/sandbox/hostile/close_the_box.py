# Takes the permissions of its folder away: the next program must still have one.
# kind: neighbours
# form: check
# status: wrong_answer
import os
try:
    os.chmod('.', 0)
except OSError:
    pass
def add(a, b): return 0
