# Leaves files in /tmp and its home for the next program.
# kind: neighbours
# form: check
# status: wrong_answer
import os
open('/tmp/note-for-the-next', 'w').write('3')
open(os.path.expanduser('~/note-for-the-next'), 'w').write('3')
def add(a, b): return 0
