"""A TCP proxy on loopback that can cut its connections, hold or delay what goes through, swallow it, or take no more."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Proxy:
    """Forwards connections to `target` ("host:port").

    forwarding: False swallows all. muted: swallows what comes back. delay_s: what goes through takes so long, either way.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.forwarding, self.muted, self.delay_s = True, False, 0.0
        self._open = threading.Event()
        self._open.set()
        self._pairs: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self) -> None:
        """Let nothing through until `release`, and lose nothing: what a network does while a cable is out."""
        self._open.clear()

    def release(self) -> None:
        """Let through what was held, and what follows."""
        self._open.set()

    def cut(self) -> None:
        """Break every open connection."""
        for end in self._pairs:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._pairs.clear()

    def redirect(self, target: str) -> None:
        """Break every open connection, and forward new ones to `target`."""
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.cut()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.release()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:  # nobody listens there at the moment
                near.close()
                continue
            self._pairs += [near, far]
            threading.Thread(target=self._copy, args=[near, far, False], daemon=True).start()
            threading.Thread(target=self._copy, args=[far, near, True], daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, back: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.delay_s:
                    time.sleep(self.delay_s)
                self._open.wait()
                if self.forwarding and not (back and self.muted):
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)
