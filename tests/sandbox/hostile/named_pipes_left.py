# Puts named pipes, sockets and endless links where later programs look for files.
# kind: neighbours
# form: check
import os, socket
for name in ("f", "input.txt", "program.py", "test.py", "p.js"):
    for folder in (".", "/tmp"):
        try: os.mkfifo(f"{folder}/{name}", 0o000)
        except OSError: pass
for n in range(50):
    try:
        os.symlink(".", f"loop{n}"); os.symlink("/dev/zero", f"zero{n}")
    except OSError: pass
try: socket.socket(socket.AF_UNIX).bind("sock")
except OSError: pass
def add(a, b): return 0
