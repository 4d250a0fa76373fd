# Watches folders that the host shares by inotify, to learn which files others open.
# kind: host
# form: call
# limits: {"wall_s": 3, "cpu_s": 2}
import ctypes, os, struct, time
libc = ctypes.CDLL(None, use_errno=True)
def add(a, b):
    fd = libc.inotify_init1(0o4000)
    watched = [libc.inotify_add_watch(fd, name, 0x20) for name in (b"/usr/bin", os.path.dirname(os.__file__).encode())]
    time.sleep(0.5)
    try: return ["seen", watched, len(os.read(fd, 65536))]
    except OSError as error: return ["nothing", watched, error.errno]
