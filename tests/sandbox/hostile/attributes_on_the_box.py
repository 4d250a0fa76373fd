# Makes its folder immutable, sticky and owned by others, with access lists and extended attributes.
# kind: neighbours
# form: check
import fcntl, os, struct
fd = os.open(".", os.O_RDONLY)
for action in (lambda: fcntl.ioctl(fd, 0x40086602, struct.pack("l", 0x10 | 0x20)), lambda: os.setxattr(".", "user.x", b"y" * 60000),
               lambda: os.chown(".", 12345, 12345), lambda: os.chmod(".", 0o1000), lambda: os.utime(".", (0, 0)),
               lambda: os.rename(".", "../gone"), lambda: os.rmdir(os.getcwd())):
    try: action()
    except OSError: pass
def add(a, b): return 0
