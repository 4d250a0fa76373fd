# Ends by os._exit(0) from a thread, at a time of its choice.
# kind: exits
# form: check
# status: runtime_error|wrong_answer
import os, threading
threading.Thread(target=lambda: os._exit(0)).start()
def add(a, b):
    import time
    time.sleep(0.2)
    return 3
