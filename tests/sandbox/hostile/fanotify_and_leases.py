# Watches files by fanotify, dnotify and leases, by which the opening of others' files can be held up.
# kind: host
# form: call
import ctypes, fcntl, os
def add(a, b):
    gained = [ctypes.CDLL(None).syscall(300, 0, 0)]
    for name in ("/usr/bin", "/usr/bin/env"):
        fd = os.open(name, os.O_RDONLY)
        for command, argument in ((fcntl.F_NOTIFY, 0x80000001), (fcntl.F_SETLEASE, fcntl.F_RDLCK)):
            try: gained.append(fcntl.fcntl(fd, command, argument))
            except OSError: pass
    return gained
