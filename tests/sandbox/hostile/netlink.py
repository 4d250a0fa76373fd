# test: check
# status: runtime_error
import socket
socket.socket(16, socket.SOCK_RAW, 0)
