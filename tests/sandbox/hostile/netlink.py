# Opens a netlink socket to the kernel's network configuration.
# kind: host
# form: check
# status: runtime_error
import socket
socket.socket(16, socket.SOCK_RAW, 0)
