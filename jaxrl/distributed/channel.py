"""Messages between the processes of a run, and the news that one of them is gone.

The first process is the hub; every other one keeps a connection to it. The connection of a killed process closes; a
process that hangs, or whose machine is gone, sends no more heartbeats. The hub tells the others; if the hub itself is
gone, each of them notices. Nothing here waits for a device: it works while a process is in a collective, samples or
compiles.

Handshake and messages are multiprocessing.connection's: Connection objects, and the challenge that proves the key
without sending it. Its Listener and Client are not used: a Listener authenticates one connection at a time and without
a time limit, so that a port scanner that says nothing would keep all processes out, and it listens on one address
family; a Client can neither give up connecting nor notice a silent hub.
"""

from __future__ import annotations

import contextlib
import pickle
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any, NamedTuple

from jaxrl.errors import ChannelError

HANDSHAKE_S = 10.0
RETRY_S = 0.2
START, END = "start of the run", "end of the run"

Tag = tuple[str, int]  # a name and how often it was used before


class _Peer(NamedTuple):
    """Another process."""

    connection: Connection
    sending: threading.Lock


class Channel:
    """A process's connection to all others; made when all of them are there.

    Args:
        address: host:port of the first process, which listens there.
        count: number of processes.
        index: of this process, from 0.
        read_key: gives the secret that all processes share; called for each attempt to join, may raise OSError.
        on_loss: called once, in a thread, with a line that says which process is gone and how.
        heartbeat_s: a process that is silent for longer is gone.
        wait_s: how long to wait for the others at the start.

    Raises ChannelError when they do not come, or two of them claim the same index.
    """

    def __init__(
        self,
        address: str,
        count: int,
        index: int,
        *,
        read_key: Callable[[], bytes],
        on_loss: Callable[[str], None],
        heartbeat_s: float = 30.0,
        wait_s: float = 300.0,
    ):
        host, _, port = address.rpartition(":")
        self.count, self.index, self.host = count, index, host.strip("[]")
        self._on_loss, self._heartbeat_s = on_loss, heartbeat_s
        self._peers: dict[int, _Peer] = {}
        self._news = threading.Condition()  # guards the fields below
        self._uses: dict[str, int] = defaultdict(int)
        self._parts: dict[Tag, dict[int, bytes]] = defaultdict(dict)  # at the hub: what has arrived
        self._whole: dict[Tag, list[bytes]] = {}
        self.over = False  # the others may leave unnoticed
        self._failure = ""
        if index == 0:
            self._gather(int(port), read_key(), wait_s)
        else:
            self._join(int(port), read_key, wait_s)
        threading.Thread(target=self._give_signs_of_life, name="heartbeat", daemon=True).start()
        for other in self._peers:
            threading.Thread(target=self._listen, args=(other,), name=f"process-{other}", daemon=True).start()
        self.exchange(START, None)

    def exchange(self, name: str, value: Any) -> list[Any]:
        """The values of all processes under this name, in their order; waits for all of them.

        Values are pickled. Threads may exchange under different names at the same time. Raises ChannelError when a
        process is gone.
        """
        with self._news:
            tag = name, self._uses[name]
            self._uses[name] += 1
        part = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        if self.index == 0:
            self._collect(tag, 0, part)
        else:
            self._send(0, ("part", tag, part))
        with self._news:
            self._news.wait_for(lambda: tag in self._whole or self.over)
            if tag not in self._whole:
                raise ChannelError(self._failure)
            whole = self._whole.pop(tag)
        return [pickle.loads(p) for p in whole]

    def leave(self, reason: str) -> None:
        """Tells the others, through their on_loss, that this process stops now and why."""
        line = f"process {self.index} of {self.count} stopped: {reason}"
        if self._end(line):
            self._tell(("lost", line))

    def close(self) -> None:
        """Returns when all processes have called this; from then on each may end."""
        if not self.over:
            self.exchange(END, None)

    # ------------------------------------------------------------------ start

    def _gather(self, port: int, key: bytes, wait_s: float) -> None:
        """The hub's start: returns when all others have joined."""
        try:
            dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual else socket.AF_INET
            server = socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=1024)
        except OSError as error:
            raise ChannelError(f"the first process cannot listen on port {port}: {error.strerror}") from None
        threading.Thread(target=self._accept, args=(server, key), name="joining", daemon=True).start()
        with self._news:
            self._news.wait_for(lambda: self._failure or len(self._peers) == self.count - 1, wait_s)
            missing = [str(i) for i in range(1, self.count) if i not in self._peers]
            if missing and not self._failure:
                self._failure = f"waited {wait_s:.0f} s for process {', '.join(missing)} of {self.count}"
        # close() alone leaves the port open: the thread in accept() holds the socket until the next connection.
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        if self._failure:
            self._tell(("lost", self._failure))
            raise ChannelError(self._failure)

    def _accept(self, server: socket.socket, key: bytes) -> None:
        with contextlib.suppress(OSError):  # closed: all have joined
            while True:
                connected, _ = server.accept()
                threading.Thread(target=self._admit, args=(connected, key), daemon=True).start()

    def _admit(self, connected: socket.socket, key: bytes) -> None:
        """A peer that proves the key becomes the process that it claims to be."""
        with contextlib.suppress(OSError, EOFError, AuthenticationError):  # not one of the run
            peer = _peer(connected)
            deliver_challenge(peer.connection, key)
            answer_challenge(peer.connection, key)
            index, count = peer.connection.recv()
            _set_timeout(peer.connection, self._heartbeat_s)
            with self._news:
                if count != self.count:
                    self._failure = f"a process joined as {index} of {count}, but this run has {self.count}"
                elif index in self._peers:
                    self._failure = f"two processes joined as process {index} of {self.count}"
                self._peers.setdefault(index, peer)
                self._news.notify_all()

    def _join(self, port: int, read_key: Callable[[], bytes], wait_s: float) -> None:
        """The others' start: tries until the hub listens."""
        deadline = time.monotonic() + wait_s
        while 0 not in self._peers:
            try:
                key = read_key()
                peer = _peer(socket.create_connection((self.host, port), HANDSHAKE_S))
                answer_challenge(peer.connection, key)
                deliver_challenge(peer.connection, key)
                peer.connection.send((self.index, self.count))
                _set_timeout(peer.connection, wait_s + self._heartbeat_s)  # the hub is silent until all have joined
                self._peers[0] = peer
            except (OSError, EOFError, AuthenticationError) as error:
                if time.monotonic() > deadline:
                    raise ChannelError(
                        f"process {self.index} of {self.count} could not join the first one at {self.host}:{port} in "
                        f"{wait_s:.0f} s: {error}"
                    ) from None
                time.sleep(RETRY_S)

    # ------------------------------------------------------------------ messages

    def _listen(self, other: int) -> None:
        """Receives from another process until it is gone."""
        while True:
            try:
                kind, *content = self._peers[other].connection.recv()
            except BlockingIOError:  # the timeout
                return self._lose(other, f"no heartbeat for {self._heartbeat_s:.0f} s")
            except (OSError, EOFError):
                return self._lose(other, "connection closed")
            if kind == "part":
                self._collect(content[0], other, content[1])
            elif kind == "whole":
                self._deliver(*content)
            elif kind == "lost":
                return self._lose(other, "", content[0])

    def _collect(self, tag: Tag, index: int, part: bytes) -> None:
        """At the hub: sends the parts to all once they are complete."""
        with self._news:
            self._parts[tag][index] = part
            if len(self._parts[tag]) < self.count:
                return
            parts = self._parts.pop(tag)
        whole = [parts[i] for i in range(self.count)]
        self._tell(("whole", tag, whole))
        self._deliver(tag, whole)

    def _deliver(self, tag: Tag, whole: list[bytes]) -> None:
        if tag[0] == START:
            for peer in self._peers.values():
                _set_timeout(peer.connection, self._heartbeat_s)
        with self._news:
            self.over |= tag[0] == END
            self._whole[tag] = whole
            self._news.notify_all()

    def _lose(self, other: int, how: str, line: str = "") -> None:
        line = line or f"process {other} of {self.count} is gone ({how})"
        if self._end(line):
            if self.index == 0:
                self._tell(("lost", line))
            self._on_loss(line)

    def _end(self, line: str) -> bool:
        """Ends all exchanges with this line; False if they had ended before."""
        with self._news:
            if self.over:
                return False
            self.over, self._failure = True, line
            self._news.notify_all()
            return True

    def _give_signs_of_life(self) -> None:
        while not self.over:
            for other, peer in self._peers.items():
                if not peer.sending.locked():  # otherwise it hears from us anyway
                    self._send(other, ("alive",))
            time.sleep(self._heartbeat_s / 6)

    def _tell(self, message: tuple[Any, ...]) -> None:
        for other in self._peers:
            self._send(other, message)

    def _send(self, other: int, message: tuple[Any, ...]) -> None:
        connection, sending = self._peers[other]
        with sending:
            try:
                connection.send(message)
            except OSError:  # it is gone, or the message was sent in part: _listen reports it
                with _borrowed(connection) as connected, contextlib.suppress(OSError):
                    connected.shutdown(socket.SHUT_RDWR)


def _peer(connected: socket.socket) -> _Peer:
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.settimeout(None)  # the kernel's timeout instead, see _set_timeout
    peer = _Peer(Connection(connected.detach()), threading.Lock())
    _set_timeout(peer.connection, HANDSHAKE_S)
    return peer


def _set_timeout(connection: Connection, seconds: float) -> None:
    """Reads and writes raise BlockingIOError after `seconds` without progress, in the middle of a message too."""
    timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with _borrowed(connection) as connected:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


@contextlib.contextmanager
def _borrowed(connection: Connection) -> Iterator[socket.socket]:
    connected = socket.socket(fileno=connection.fileno())
    try:
        yield connected
    finally:
        connected.detach()


def relay(host: str, port: int) -> int:
    """Opens a local port that forwards connections to host:port and keeps them open when that side closes them.

    JAX's client of the coordination service aborts its process (SIGABRT) as soon as the first process closes the
    connection; behind this relay it does not notice, and the run can end with a message.
    """
    server = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)

    def serve() -> None:
        while True:
            near, _ = server.accept()
            try:
                far = socket.create_connection((host, port))
            except OSError:
                near.close()  # JAX tries again
                continue
            kept.extend((near, far))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=copy, args=pair, name="relay", daemon=True).start()

    threading.Thread(target=serve, name="relay", daemon=True).start()
    return server.getsockname()[1]
