# Sleeps within the call that is tested.
# kind: resources
# form: check
# status: timeout
import time
def add(a, b): time.sleep(1000)
