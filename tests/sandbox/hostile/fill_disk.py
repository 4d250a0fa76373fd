# Writes one file until the disk is full.
# kind: resources
# form: check
# status: runtime_error
with open('big', 'wb') as f:
    while True: f.write(b'x' * 10 ** 6)
