# Makes a device file for a disk and reads it.
# kind: host
# form: check
# status: runtime_error
import os, stat
os.mknod('disk', 0o600 | stat.S_IFBLK, os.makedev(254, 0))
open('disk', 'rb').read(1)
