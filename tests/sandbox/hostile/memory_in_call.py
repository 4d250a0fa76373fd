# Takes 80 GB within the call that is tested.
# kind: resources
# form: check
# status: memory|runtime_error
def add(a, b): return [0] * 10 ** 10
