# test: check
# status: runtime_error
import os, stat
os.mknod('disk', 0o600 | stat.S_IFBLK, os.makedev(254, 0))
open('disk', 'rb').read(1)
