# test: check
# status: runtime_error|wrong_answer
import os
while True: os.pipe()
