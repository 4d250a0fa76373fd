# Prints the answer in other scripts' digits, as hex, as a float with an exponent, with a sign, underscores or padding.
# kind: lies
# form: stdio
print("\u0663")
