"""An NBD server that says something else each time the header of its image is read."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from attrs import define, field

from lukshook.store.remote import nbd_server

_FLAGS = nbd_server.HAS_FLAGS | nbd_server.CAN_FLUSH | nbd_server.CAN_FUA


@define
class LyingServer:
    """Serves *image*. *lie*: what is read in place of its first bytes, the n-th time.

    *reads*: how often they were read, negative while it tells the truth.
    """

    image: Path
    lie: Callable[[bytes, int], bytes]
    listener: socket.socket = field(factory=socket.socket)
    reads: int = -1

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def listen(self) -> None:
        """Until its socket is closed."""
        with suppress(OSError):
            while True:
                Thread(target=self._serve, args=(self.listener.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError, nbd_server.NotNbd, EOFError), connection, connection.makefile("rb") as stream:

            def hear(count: int) -> bytes:
                heard = stream.read(count)
                if len(heard) < count:
                    raise EOFError
                return heard

            if nbd_server.greet(hear, connection.sendall, self.image.stat().st_size, _FLAGS):
                while self._answer(hear, connection.sendall):
                    pass

    def _answer(self, hear: Callable[[int], bytes], say: Callable[[bytes], None]) -> bool:
        request = nbd_server.request(hear(nbd_server.HEADER))
        data = b""
        if request.kind == nbd_server.DISCONNECT:
            return False
        with self.image.open("r+b") as file:
            file.seek(request.offset)
            if request.kind == nbd_server.WRITE:
                file.write(hear(request.length))
            elif request.kind == nbd_server.READ:
                data = self._lied(file.read(request.length), request.offset)
        say(nbd_server.answer(request.cookie, 0, data))
        return True

    def _lied(self, data: bytes, offset: int) -> bytes:
        if offset or self.reads < 0:
            return data
        self.reads += 1
        return self.lie(data, self.reads)


@contextmanager
def lying_server(image: Path, lie: Callable[[bytes, int], bytes]) -> Iterator[LyingServer]:
    """One that tells the truth until its *reads* are 0."""
    server = LyingServer(image, lie)
    server.listener.bind(("127.0.0.1", 0))
    server.listener.listen()
    thread = Thread(target=server.listen, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()
        thread.join(10)
