# Starts threads for ever.
# kind: processes
# form: check
# status: runtime_error|timeout|killed|memory
import threading, time
while True:
    threading.Thread(target=time.sleep, args=(100,)).start()
