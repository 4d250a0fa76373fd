# Claims on its channel a failure whose text, once decoded, takes the reader more memory than it may have.
# kind: forges
# form: assert, check
import os, struct, time
data = b'{"failed": {"message": ["' + b"\xc2\x80" * 29_000_000 + "\U0001F600".encode() + b'"]}}'
data = memoryview(struct.pack("<I", len(data)) + data)
while data:
    try: data = data[os.write(3, data):]
    except OSError: break
time.sleep(60)
