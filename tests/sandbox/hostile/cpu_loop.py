# test: check
# status: timeout
while True: pass
