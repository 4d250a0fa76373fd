# test: check
# status: timeout
import time
time.sleep(1000)
