# Computes without end in five threads.
# kind: resources
# form: check
# status: timeout
import threading
def spin():
    while True: pass
for _ in range(4): threading.Thread(target=spin).start()
spin()
