# Lets a child print the answer after its own end: only what is printed before counts.
# kind: processes
# form: stdio
# status: wrong_answer
import os, time
if os.fork() == 0:
    time.sleep(0.3)
    a, b = map(int, input().split())
    print(a + b)
