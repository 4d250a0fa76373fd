# Answers with a NaN that carries bits of its own, and a float one step from the right one for a huge int.
# kind: lies
# form: call, assert
import struct
def add(a, b): return struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000003))[0]
