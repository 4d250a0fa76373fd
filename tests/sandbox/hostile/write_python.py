# The standard library of the programs to come.
# test: check
# status: runtime_error
import os
open(os.__file__, 'a').write('import hostile')
