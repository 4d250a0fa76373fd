# Prints the right answer and ends with exit status 1.
# kind: exits
# form: stdio
# status: runtime_error
import sys
a, b = map(int, input().split())
print(a + b)
sys.exit(1)
