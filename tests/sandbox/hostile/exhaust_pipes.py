# Makes pipes until there are none.
# kind: resources
# form: check
# status: runtime_error|wrong_answer
import os
while True: os.pipe()
