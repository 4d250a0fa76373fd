# Takes memory in six children, each of them below the limit.
# kind: resources
# form: check
# status: memory|killed|runtime_error|timeout|wrong_answer
import os
for _ in range(6):
    if os.fork() == 0:
        x = bytearray(200 * 2 ** 20)
        for i in range(0, len(x), 4096): x[i] = 1
import time
time.sleep(0.5)
def add(a, b): return 0
