# test: check
# status: memory
x = []
while True: x.append(bytearray(10 ** 7))
