# Listens on a port of the machine.
# kind: host
# form: check
# status: wrong_answer
import socket
def add(a, b):
    try:
        s = socket.socket()
        s.bind(('127.0.0.1', 45671))
        s.listen()
    except OSError:
        return None
    return -1
