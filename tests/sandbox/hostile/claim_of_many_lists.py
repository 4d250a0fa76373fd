# Claims to have failed in 60 MB of empty lists, which take more than a gigabyte once they are read.
# kind: resources
# form: call, assert, check
import os
import time


def add(a, b):
    data = b"e[" + b"[]," * 20_000_000 + b"1]"
    rest = memoryview(len(data).to_bytes(4, "little") + data)
    while rest:
        rest = rest[os.write(3, rest) :]
    time.sleep(30)
