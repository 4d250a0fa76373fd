# Only what is printed before the end counts.
# test: stdio
# status: wrong_answer
import os, time
if os.fork() == 0:
    time.sleep(0.3)
    a, b = map(int, input().split())
    print(a + b)
