# Takes memory in steps of 10 MB.
# kind: resources
# form: check
# status: memory
x = []
while True: x.append(bytearray(10 ** 7))
