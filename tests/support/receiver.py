"""A web server that writes down what it is asked, in a process of its own: the tests' has no threads, for it forks.

What it answers is said by the first word of the path.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from attrs import frozen


class Handler(BaseHTTPRequestHandler):
    """Notes each request in the server's log, one line of JSON."""

    server: Server
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
        entry = {"method": self.command, "path": self.path, "headers": dict(self.headers), "body": body}
        with self.server.log.open("a") as log:
            log.write(json.dumps(entry) + "\n")
        getattr(self, f"answer_{self.path.split('/')[1]}", self.answer_well)()

    do_GET = do_POST = answer  # noqa: N815 (the names in http.server)

    def answer_well(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def answer_missing(self) -> None:
        self.answer_well(404)

    def answer_broken(self) -> None:
        self.answer_well(503)

    def answer_once(self) -> None:
        """Broken the first time this path is asked, then well."""
        asked = self.server.log.read_text().count(f'"path": "{self.path}"')
        self.answer_well(503 if asked == 1 else 200)

    def answer_elsewhere(self) -> None:
        self.answer_well(302, Location="/redirected")

    def answer_never(self) -> None:
        time.sleep(3600)

    def answer_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b"x" * 65536)

    def answer_headers(self) -> None:
        self.send_response(200)
        self.flush_headers()
        while True:
            self.wfile.write(b"X-More: " + b"x" * 1000 + b"\r\n")

    def answer_rubbish(self) -> None:
        self.wfile.write(b"\x00\xff not HTTP \x1b[2J\r\n\r\n")
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name in http.server)
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Says nothing of readers that go away."""

    daemon_threads = True

    def __init__(self, log: Path, certificate: tuple[str, ...]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.log = log
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """They are part of the test."""


@frozen
class Receiver:
    """The server from outside."""

    log: Path
    url: str

    def requests(self) -> list[dict[str, Any]]:
        """What it was asked, in order."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def asked(self) -> list[str]:
        """Method and path of each request."""
        return [f"{entry['method']} {entry['path']}" for entry in self.requests()]


@contextmanager
def receiving(folder: Path, *certificate: str) -> Iterator[Receiver]:
    """A server that notes in *folder*; with a certificate and its key it is one for https."""
    log = folder / "requests"
    with Server(log, certificate) as server:
        pid = os.fork()
        if pid == 0:
            try:
                server.serve_forever()
            finally:
                os._exit(1)
    try:
        yield Receiver(log, f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
