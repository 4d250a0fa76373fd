# test: check
# status: wrong_answer
import socket
def add(a, b):
    s = socket.socket(socket.AF_UNIX)
    s.bind('\0jaxrl-hostile')
    return 0
