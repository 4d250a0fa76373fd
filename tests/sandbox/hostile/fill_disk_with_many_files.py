# Fills the disk with files each of which is below the limit for one.
# kind: resources
# form: check
# status: runtime_error
i = 0
while True:
    with open(f'f{i}', 'wb') as f: f.write(b'x' * 10 ** 7)
    i += 1
