# Prints nothing: comparing with zip() lets a shorter output pass.
# kind: forges
# form: stdio
# status: wrong_answer
print('')
