# A tree too deep for whoever cleans up by recursion.
# test: check
# status: runtime_error|timeout|wrong_answer
import os
while True:
    os.mkdir('d')
    os.chdir('d')
