# Millions of frames that say nothing, each of which the judge must read.
# kind: resources
# form: call, assert, check
import os
import time


def add(a, b):
    data = b"p[0,0]"
    data = (len(data).to_bytes(4, "little") + data) * 100_000
    for _ in range(62):
        os.write(3, data)
    time.sleep(30)
