# test: check
# status: runtime_error
quit()
