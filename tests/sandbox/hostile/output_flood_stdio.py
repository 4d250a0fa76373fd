# test: stdio
# status: output_limit
while True: print('3')
