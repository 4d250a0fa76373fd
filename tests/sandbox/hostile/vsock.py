# Opens a socket to the hypervisor, which knows no namespaces.
# kind: host
# form: check
# status: runtime_error
import socket
socket.socket(40, socket.SOCK_STREAM)
