# Climbs out of its root folder by chroot().
# kind: host
# form: check
# status: runtime_error
import os
os.mkdir('x')
os.chroot('x')
for _ in range(100): os.chdir('..')
os.chroot('.')
open('/etc/shadow')
