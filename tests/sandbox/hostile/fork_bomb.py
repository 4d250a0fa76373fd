# Forks for ever.
# kind: processes
# form: check
# status: killed|runtime_error|timeout|wrong_answer
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
