# A clock that stands still must not stop the time limit.
# test: check
# status: timeout
import time
time.time = time.monotonic = time.perf_counter = lambda: 0.0
time.sleep = lambda s: None
def add(a, b):
    while True: pass
