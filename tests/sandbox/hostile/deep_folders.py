# Makes a tree too deep for whoever cleans up by recursion.
# kind: neighbours
# form: check
# status: runtime_error|timeout|wrong_answer
import os
while True:
    os.mkdir('d')
    os.chdir('d')
