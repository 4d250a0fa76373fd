# Opens a raw network socket.
# kind: host
# form: check
# status: runtime_error
import socket
socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
