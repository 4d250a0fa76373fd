# Sleeps for a quarter of an hour when it is loaded.
# kind: resources
# form: check
# status: timeout
import time
time.sleep(1000)
