# Raises an exception whose class name has 9 million letters, and outlives whoever tries to report it.
# kind: resources
# form: assert, check
import os, time
os._exit = lambda code: time.sleep(60)
def add(a, b): raise type("A" * 9_000_000, (Exception,), {})("x")
