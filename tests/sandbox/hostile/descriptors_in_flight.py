# Sends its descriptors through sockets in messages that nobody reads, which keeps them open beyond close().
# kind: processes
# form: call, check
import array, os, socket
def add(a, b):
    kept = []
    try:
        for _ in range(20):
            one, other = socket.socketpair()
            for _ in range(50):
                one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1, 2, 3, other.fileno()]))])
            kept.append((one, other))
    except OSError: pass
    return 0
