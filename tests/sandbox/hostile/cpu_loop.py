# Computes without end.
# kind: resources
# form: check
# status: timeout
while True: pass
