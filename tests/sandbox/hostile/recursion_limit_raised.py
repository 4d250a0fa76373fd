# Raises the recursion limit and gives an object whose repr, str and encoding recurse in C.
# kind: resources
# form: call, assert, inspect
import sys
sys.setrecursionlimit(2 ** 31 - 1)
def add(a, b):
    value = {}
    for _ in range(1_000_000): value = {"x": value}
    return value
