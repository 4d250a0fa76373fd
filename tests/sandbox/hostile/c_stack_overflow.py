# Recurses past the end of the C stack.
# kind: resources
# form: check
# status: killed|runtime_error|timeout|memory
import sys
sys.setrecursionlimit(10 ** 9)
def add(a, b): return add(b, a)
