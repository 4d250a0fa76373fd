# Leaves a sleeping command in a session of its own.
# kind: processes
# form: check
# status: wrong_answer
import subprocess
def add(a, b):
    subprocess.Popen(['sleep', '1000'], start_new_session=True)
    return 0
