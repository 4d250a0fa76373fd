# Hands its channel to an orphan in a session of its own that goes on answering after the end.
# kind: processes
# form: call, assert, check
import json, os, struct, time
def add(a, b):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            data = json.dumps({"value": 42}).encode()
            for _ in range(1000):
                try: os.write(3, struct.pack("<I", len(data)) + data)
                except OSError: os._exit(0)
                time.sleep(0.001)
        os._exit(0)
    os._exit(0)
