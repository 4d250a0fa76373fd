# Takes 100 GB at once.
# kind: resources
# form: check
# status: memory
x = bytearray(10 ** 11)
