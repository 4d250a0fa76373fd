# test: check
# status: memory
x = bytearray(10 ** 11)
