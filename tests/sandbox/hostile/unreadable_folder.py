# Leaves a folder without permissions.
# kind: neighbours
# form: check
# status: wrong_answer
import os
os.mkdir('closed')
open('closed/file', 'w').close()
os.chmod('closed', 0)
os.chmod('.', 0) if False else None
def add(a, b): return 0
