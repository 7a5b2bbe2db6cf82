"""One connection to an image behind SFTP: NBD on standard input and output, SFTP through an ssh that it starts.

    qemu-storage-daemon  ->  socat  ->  this process  ->  ssh -s HOST sftp

A write counts as done when the server has said that it is synced. So a server that restarts, or is replaced, loses
nothing that was taken for written, and no flush has to be believed later. One sync serves all writes that wait for
one; a request does not wait for the answers to others. Source of the order: draft-ietf-secsh-filexfer-02, 6: requests
for one file are carried out in the order in which they come.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
import sys
from pathlib import Path

from attrs import define, field

from lukshook.store.pipes import Pipes
from lukshook.store.remote import connection, export, nbd_server, relay
from lukshook.store.remote.connection import CHUNK, CLIENT_IN, CLIENT_OUT, MOST_WAITING, Broken, Writes
from lukshook.store.remote.export import Export
from lukshook.store.remote.lock_file import Held, LockFile
from lukshook.store.remote.relay import Refusal, Relay
from lukshook.store.sftp_client import (
    DATA,
    EXTENDED,
    FSYNC,
    MOST,
    READ,
    STATUS,
    WRITE,
    Sftp,
    SftpFile,
    SftpTarget,
    packed,
    string,
)

#: Requests under way until we take no more from the client.
_MOST_REQUESTS = 512
_OK, _EOF = 0, 1


@define(eq=False)
class _Job:
    """A request of the client. *left*: answers that it waits for; *error*: errno(3), 0 for none."""

    request: nbd_server.Request
    left: int = 0
    error: int = 0
    data: bytearray = field(factory=bytearray)


@define(eq=False)
class _Part:
    """A part of a job that is read: where in the image it begins, and how long it is."""

    job: _Job
    offset: int = 0
    length: int = 0


class Bridge(Relay):
    """Passes requests on, for an image of *size* bytes that is open there as *handle*. Packed, as in `SftpFile`.

    *folder*: our private one.
    """

    def __init__(self, handle: bytes, size: int, server: tuple[int, int], folder: Path, silence: float) -> None:
        super().__init__(server, silence)
        self._handle, self._size = handle, size
        self._numbers = itertools.count(1 << 20)
        self._from_client, self._from_server = bytearray(), bytearray()
        self._parts: dict[int, _Part] = {}
        self._syncing: dict[int, list[_Job]] = {}
        self._unsynced: list[_Job] = []
        self._folder, self.writes = folder, Writes(folder)

    @property
    def is_busy(self) -> bool:
        """Whether an answer of the server is missing."""
        return bool(self._parts or self._syncing)

    @property
    def is_writing(self) -> bool:
        """Whether a write is not synced."""
        return bool(self._syncing or self._unsynced) or not all(part.length for part in self._parts.values())

    def has_room(self) -> bool:
        """Whether more requests are taken."""
        return len(self._parts) < _MOST_REQUESTS and len(self.to_server) + len(self.to_client) < MOST_WAITING

    # The client

    def take_requests(self, data: bytes) -> None:
        """What the client wants."""
        self._from_client += data
        while not self.leaving and len(self._from_client) >= nbd_server.HEADER:
            request = nbd_server.request(self._from_client[: nbd_server.HEADER])
            end = nbd_server.HEADER + (request.length if request.kind == nbd_server.WRITE else 0)
            if len(self._from_client) < end:
                return
            content = bytes(self._from_client[nbd_server.HEADER : end])
            del self._from_client[:end]
            self._begin(request, content)

    def _begin(self, request: nbd_server.Request, content: bytes) -> None:
        job = _Job(request)
        if request.kind == nbd_server.DISCONNECT:
            self.leaving = True
        elif request.kind == nbd_server.FLUSH:  # what was answered is synced
            self._reply(job)
        elif request.kind not in (nbd_server.READ, nbd_server.WRITE) or request.offset + request.length > self._size:
            job.error = errno.EINVAL
            self._reply(job)
        else:
            self.due.asked(request.cookie, request.length, stores=request.kind == nbd_server.WRITE)
            if request.kind == nbd_server.READ:
                self._read(job)
            else:
                self._write(job, content)

    def _reply(self, job: _Job) -> None:
        self.due.answered(job.request.cookie)
        data = job.data if job.request.kind == nbd_server.READ and not job.error else b""
        self.to_client += nbd_server.answer(job.request.cookie, job.error, data)

    # The server

    def _send(self, kind: int, body: bytes) -> int:
        number = next(self._numbers) & 0xFFFFFFFF
        self.to_server += struct.pack(">IBI", len(body) + 5, kind, number) + body
        return number

    def _read(self, job: _Job) -> None:
        job.data = bytearray(job.request.length)
        for offset, length in _pieces(job.request.offset, job.request.length):
            self._read_part(job, offset, length)
        if not job.left:
            self._reply(job)

    def _read_part(self, job: _Job, offset: int, length: int) -> None:
        job.left += 1
        number = self._send(READ, self._handle + struct.pack(">QI", offset, length))
        self._parts[number] = _Part(job, offset, length)

    def _write(self, job: _Job, content: bytes) -> None:
        if not self.writes.begun:
            connection.note_written(self._folder)
        self.writes.begin()
        begin = job.request.offset
        for offset, length in _pieces(begin, len(content)):
            job.left += 1
            part = content[offset - begin : offset - begin + length]
            number = self._send(WRITE, self._handle + struct.pack(">Q", offset) + packed(part))
            self._parts[number] = _Part(job)
        job.left += 1
        self._unsynced.append(job)
        if not self._syncing:
            self._sync()

    def _sync(self) -> None:
        """One for all writes that were sent before it."""
        jobs, self._unsynced = self._unsynced, []
        self._syncing[self._send(EXTENDED, packed(FSYNC) + self._handle)] = jobs

    def take_answers(self, data: bytes) -> None:
        """What the server says."""
        self._from_server += data
        while len(self._from_server) >= 4:
            length = int.from_bytes(self._from_server[:4], "big")
            if not 5 <= length <= CHUNK:
                raise Broken("the server speaks no SFTP")
            if len(self._from_server) < 4 + length:
                return
            message = bytes(self._from_server[4 : 4 + length])
            del self._from_server[: 4 + length]
            self._take_answer(message[0], int.from_bytes(message[1:5], "big"), message[5:])

    def _take_answer(self, kind: int, number: int, body: bytes) -> None:
        code = int.from_bytes(body[:4], "big") if kind == STATUS else _OK
        if number in self._syncing:
            for job in self._syncing.pop(number):
                self._done(job, code)
            if self._unsynced:
                self._sync()
            return
        part = self._parts.pop(number, None)
        if part is None:
            raise Broken("an answer of the server fits no request")
        if part.length:
            self._take_data(part, string(body)[0] if kind == DATA else b"")
        else:
            self._done(part.job, code if kind == STATUS else _EOF)

    def _take_data(self, part: _Part, data: bytes) -> None:
        """A server may give less than was asked for; nothing means that the image ends there, or cannot be read."""
        if len(data) > part.length:
            raise Broken("the server gives more than was asked for")
        at = part.offset - part.job.request.offset
        part.job.data[at : at + len(data)] = data
        if data and len(data) < part.length:
            self._read_part(part.job, part.offset + len(data), part.length - len(data))
        self._done(part.job, _OK if data else _EOF)

    def _done(self, job: _Job, code: int) -> None:
        job.left -= 1
        if code != _OK:
            job.error = errno.EIO
        if not job.left:
            self._reply(job)


def _pieces(offset: int, length: int) -> list[tuple[int, int]]:
    """Offset and length of each part that every server takes at once."""
    end = offset + length
    return [(at, min(MOST, end - at)) for at in range(offset, end, MOST)]


def main() -> None:
    """The words are: our private folder; what `_main` takes apart; the words that start ssh."""
    relay.run(lambda: _main(Path(sys.argv[1]), sys.argv[2:8], sys.argv[8:]))


def _main(folder: Path, own: list[str], ssh: list[str]) -> None:
    """*own*: path of the image, name of the lock file, holder, silence in seconds, "r" or "w", socket of an agent."""
    path, lock, holder, silence, mode, agent = own
    with connection.tool(ssh, folder, {"SSH_AUTH_SOCK": agent} if agent else {}) as tool:
        sftp = Sftp(Pipes(tool.requests, tool.answers))
        target = SftpTarget(sftp, path, "the image")
        try:
            image = _opened(target, LockFile(lock, holder), writable=mode == "w")
            size, flags = image.size, _flags(target, read_only=mode == "r")
            sftp.settle()
            export.note(folder, Export.of(size, flags))
            served = nbd_server.greet(_heard, _said, size, flags)
        except Held as error:
            raise Refusal(f"the image is open elsewhere: {error} has it") from error
        except (struct.error, nbd_server.NotNbd) as error:
            raise Refusal(str(error)) from error
        if served:
            relay.is_served()
            connection.tell_back(folder)
            bridge = Bridge(image.handle, size, tool.server, folder, float(silence))
            relay.serve(bridge, tool, folder, bridge.writes)


def _opened(target: SftpTarget, lock: LockFile, *, writable: bool) -> SftpFile:
    """The image, which has to be ours. Raises `Held`, OSError."""
    if writable and not lock.checked(target):
        raise Broken("our lock beside the image is gone")
    return target.open(target.name, writable=writable)


def _flags(target: SftpTarget, *, read_only: bool) -> int:
    """What the export can do."""
    flags = nbd_server.HAS_FLAGS | nbd_server.CAN_FUA
    flags |= nbd_server.READ_ONLY if read_only else 0
    return flags | (nbd_server.CAN_FLUSH if read_only or FSYNC in target.extensions else 0)


def _heard(count: int) -> bytes:
    """So many bytes of the client."""
    heard = b""
    while len(heard) < count:
        more = os.read(CLIENT_IN, count - len(heard))
        if not more:
            raise Broken("the client has left")
        heard += more
    return heard


def _said(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(CLIENT_OUT, view) :]
