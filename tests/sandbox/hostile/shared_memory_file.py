# Leaves a file in the shared memory folder.
# kind: neighbours
# form: check
# status: wrong_answer
import os
def add(a, b):
    open('/dev/shm/hostile', 'w').write('x')
    return 0
