# Prints the answer to one test without end.
# kind: resources
# form: stdio
# status: output_limit
while True: print('3')
