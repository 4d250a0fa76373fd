"""The hook in which a worker lives.

Python imports a module of this name before it runs the program that it was started with. A worker is started as
`python program.py`, with a program.py that does not exist yet, and serves from within this import. The process that
it forks for a script writes program.py and lets the import end (as if the module did not exist), and Python continues
as usual: it runs program.py, prints an uncaught exception, ends threads, flushes, and exits.
"""

import os
import sys
import traceback

try:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from sandbox.worker import main

    main(int(os.environ["SANDBOX_CONTROL"]))
except BaseException as error:
    if isinstance(error, ImportError) and error.name == __name__:  # sandbox.script.Handover
        raise
    traceback.print_exc()
    os._exit(1)
os._exit(0)
