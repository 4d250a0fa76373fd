# Prints the right answer and more.
# kind: forges
# form: stdio
# status: wrong_answer
a, b = map(int, input().split())
print(a + b)
print('and more')
