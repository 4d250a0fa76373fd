# test: check
# status: wrong_answer
def add(a, b):
    try:
        return undefined
    except BaseException:
        return None
