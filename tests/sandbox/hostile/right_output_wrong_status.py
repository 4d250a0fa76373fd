# test: stdio
# status: runtime_error
import sys
a, b = map(int, input().split())
print(a + b)
sys.exit(1)
