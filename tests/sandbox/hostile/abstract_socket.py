# Binds an abstract socket, a name that no file system holds back from other programs.
# kind: neighbours
# form: check
# status: wrong_answer
import socket
def add(a, b):
    s = socket.socket(socket.AF_UNIX)
    s.bind('\0jaxrl-hostile')
    return 0
