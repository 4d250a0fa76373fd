# Starts a grandchild in a session of its own, which writes files for ever.
# kind: processes
# form: check
# status: wrong_answer
import os, time
def add(a, b):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                try:
                    open("left-behind", "w").write("x")
                except OSError:
                    pass
                time.sleep(0.01)
        os._exit(0)
    return 0
