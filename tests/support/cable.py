"""A network cable between two processes, on loopback: it can be cut, mended, and have its connections reset."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

HOST = "127.0.0.1"
BLOCK_BYTES = 64 * 1024
RESET = struct.pack("ii", 1, 0)  # closing sends RST, not FIN


@dataclass
class Cable:
    """What goes through while it is whole; while it is cut both ends hear nothing, not even that the other is gone."""

    connect: Callable[[], socket.socket]
    port: int = 0
    _whole: threading.Event = field(default_factory=threading.Event)
    _ends: set[socket.socket] = field(default_factory=set)

    def cut(self) -> None:
        """Let nothing through, in either direction, and hold new connections."""
        self._whole.clear()

    def mend(self) -> None:
        """Let everything through again. Connections from before are gone, as behind a router that forgot them."""
        for end in list(self._ends):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.shutdown(socket.SHUT_RDWR)
        self._whole.set()

    def release(self) -> None:
        """Let everything through again, what was held up included."""
        self._whole.set()

    def _serve(self, near: socket.socket) -> None:
        self._ends.add(near)
        self._whole.wait()
        with contextlib.suppress(OSError):
            far = self.connect()
            self._ends.add(far)
            back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
            back.start()
            self._pump(near, far)
            back.join()
            self._ends.discard(far)
            far.close()
        self._ends.discard(near)
        near.close()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(BLOCK_BYTES):
                self._whole.wait()
                target.sendall(block)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def cable_to(connect: Callable[[], socket.socket]) -> Iterator[Cable]:
    """Lay a cable to whatever `connect` connects to, whole at first."""
    cable = Cable(connect)
    cable.release()
    with socket.create_server((HOST, 0)) as listening:
        cable.port = listening.getsockname()[1]

        def accept() -> None:
            with contextlib.suppress(OSError):  # closed at the end
                while True:
                    near, _ = listening.accept()
                    threading.Thread(target=cable._serve, args=(near,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield cable
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            cable.mend()


def to_unix_socket(path: str) -> Callable[[], socket.socket]:
    """Connect to a UNIX socket."""

    def connect() -> socket.socket:
        found = socket.socket(socket.AF_UNIX)
        found.connect(path)
        return found

    return connect


def to_port(port: int) -> Callable[[], socket.socket]:
    """Connect to a port of this machine."""
    return lambda: socket.create_connection((HOST, port))
