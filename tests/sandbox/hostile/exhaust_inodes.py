# Makes empty files until the disk takes no more.
# kind: resources
# form: check
# status: runtime_error
i = 0
while True:
    open(f'f{i}', 'w').close()
    i += 1
