# Prints without end from many processes.
# kind: resources
# form: check
# status: output_limit
import os
for _ in range(4): os.fork()
while True: os.write(1, b'x' * 4096)
