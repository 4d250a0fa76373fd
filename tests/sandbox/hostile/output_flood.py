# Prints without end.
# kind: resources
# form: check
# status: output_limit
while True: print('x' * 1000)
