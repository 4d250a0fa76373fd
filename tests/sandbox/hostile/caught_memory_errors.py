# Takes memory until there is none, catches the error and tries again, for ever.
# kind: resources
# form: check
# status: timeout|memory|wrong_answer
x = []
while True:
    try:
        x.append(bytearray(10 ** 8))
    except MemoryError:
        pass
