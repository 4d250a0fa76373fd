# Answers with lists and sets of NaN, infinity, -0.0 and ints too large for a float.
# kind: lies
# form: order_any, order_set, call
def numbers(n): return [float("nan"), float("inf"), -0.0, 10 ** 400] * (n // 4)
def add(a, b): return complex(float("nan"), float("inf")) if a == 1 else -10 ** 400
