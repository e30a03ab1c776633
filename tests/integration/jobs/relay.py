"""A network between a client and a server of this machine, which a test can break."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Relay:
    """Passes connections on to a port of this machine. `port`: where it listens; `n_dropped`: connections it broke or
    refused."""

    def __init__(self, target_port: int) -> None:
        self.n_dropped = 0
        self._target = target_port
        self._open: list[socket.socket] = []
        self._down_until = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.drop(outage_s=0)

    def drop(self, *, outage_s: float) -> None:
        """Break all connections, and all new ones for a while."""
        self._down_until = time.monotonic() + outage_s
        while self._open:
            one = self._open.pop()
            with contextlib.suppress(OSError):  # the peer has closed it before
                one.shutdown(socket.SHUT_RDWR)
                self.n_dropped += 1

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed: the end
            while True:
                client, _ = self._listener.accept()
                if time.monotonic() < self._down_until:
                    client.close()
                    self.n_dropped += 1
                    continue
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            self._open += [client, server]
            back = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
            back.start()
            _pass_on(client, server)
            back.join()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)
