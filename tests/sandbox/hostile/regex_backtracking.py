# Computes without end within one regular expression.
# kind: resources
# form: check
# status: timeout
import re
def add(a, b): return re.match(r'(a+)+$', 'a' * 60 + 'b')
