# Opens files until there are no descriptors.
# kind: resources
# form: check
# status: runtime_error|wrong_answer
import os
while True: os.open('/dev/null', os.O_RDONLY)
