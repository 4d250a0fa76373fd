# Adds a line to the standard library of the programs to come.
# kind: neighbours
# form: check
# status: runtime_error
import os
open(os.__file__, 'a').write('import hostile')
