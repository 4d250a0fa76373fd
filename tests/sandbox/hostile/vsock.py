# Sockets to the hypervisor know no namespaces.
# test: check
# status: runtime_error
import socket
socket.socket(40, socket.SOCK_STREAM)
