# Answers and prints halves of surrogate pairs, NUL bytes, line separators and marks of direction.
# kind: lies
# form: call, assert, stdio, checker
import os
def add(a, b): return "\ud83d\udc00\0\u2028\u202e3"
if __name__ == "__main__":
    os.write(1, b"\xed\xa0\xbd\x00\xe2\x80\xa8\x0b7\xff\xfe\n")
