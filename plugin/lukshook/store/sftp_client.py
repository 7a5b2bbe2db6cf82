"""A host that has nothing but SFTP: version 3 (draft-ietf-secsh-filexfer-02) and OpenSSH's extensions.

The server says which extensions it has (PROTOCOL of OpenSSH): without fsync@openssh.com nothing tells whether what was
written is safe; with copy-data the far side copies within a file, so nothing is sent twice.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Iterator
from contextlib import suppress

from lukshook.errors import Refused
from lukshook.store.pipes import PATIENCE, Pipes

_INIT, _VERSION, _OPEN, _CLOSE, READ, WRITE, _LSTAT, _FSTAT = 1, 2, 3, 4, 5, 6, 7, 8
_FSETSTAT, _REMOVE, _RENAME, EXTENDED = 10, 13, 18, 200
STATUS, _HANDLE, DATA, _ATTRS, _EXTENDED_REPLY = 101, 102, 103, 105, 201
_FXF_READ, _FXF_WRITE, _FXF_CREAT, _FXF_EXCL = 0x01, 0x02, 0x08, 0x20
_SIZE, _PERMISSIONS = 0x01, 0x04
_OK, _EOF = 0, 1
#: What a status means; everything else is a server that fails.
_ERRORS = {2: errno.ENOENT, 3: errno.EACCES, 8: errno.EOPNOTSUPP}
FSYNC, _RENAME_ONTO = b"fsync@openssh.com", b"posix-rename@openssh.com"
_COPY, _STATVFS = b"copy-data", b"statvfs@openssh.com"
#: Bytes that every server takes and gives at once.
MOST = 32768
#: Bytes of a message that is still believed to be one.
_LONGEST = 1 << 20
#: Answers to one read that may be shorter than what was asked for.
_MOST_SHORT = 64
_REGULAR = 0o100000


class Sftp:
    """A conversation with a server. Every method raises OSError for what the server refuses or the line loses.

    *greeting*: what has to come before the server's own answers.
    """

    def __init__(self, pipes: Pipes, greeting: bytes = b"") -> None:
        self._pipes = pipes
        self._numbers = itertools.count(1)
        self._unheard: set[int] = set()
        self.extensions = self._begin(greeting)

    def _begin(self, greeting: bytes) -> set[bytes]:
        self._send(_INIT, struct.pack(">I", 3))
        if self._pipes.hear(len(greeting)) != greeting:
            raise OSError(errno.EPROTO, "the far side has not started our server")
        kind, body = self._receive()
        if kind != _VERSION:
            raise OSError(errno.EPROTO, "the far side speaks no SFTP")
        found, rest = set(), body[4:]
        while rest:
            name, rest = string(rest)
            _, rest = string(rest)
            found.add(name)
        return found

    @property
    def lost(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._pipes.lost

    def ask(self, kind: int, body: bytes, patience: float | None = None) -> tuple[int, bytes]:
        """One request, and the answer to it, whose status is good. *patience*: seconds that it may take."""
        return self.answer(self.request(kind, body), patience)

    def request(self, kind: int, body: bytes) -> int:
        """Send a request; its number."""
        number = next(self._numbers)
        self._send(kind, struct.pack(">I", number) + body)
        return number

    def answer(self, number: int, patience: float | None = None) -> tuple[int, bytes]:
        """The answer to the oldest request that has none yet; its number has to be *number*.

        Those that nobody waits for (`ignore`) are passed over. They may come late (draft-ietf-secsh-filexfer-02, 6).
        """
        kind, body = self._receive(patience)
        while self._is_unheard(body):
            kind, body = self._receive(patience)
        if len(body) < 4 or int.from_bytes(body[:4], "big") != number:
            raise OSError(errno.EPROTO, "an answer of the far side fits no request")
        code = int.from_bytes(body[4:8], "big") if kind == STATUS else _OK
        if code not in (_OK, _EOF):
            said = string(body[8:])[0].decode(errors="replace")
            raise OSError(_ERRORS.get(code, errno.EIO), said or "the far side refused")
        return kind, body[4:]

    def ignore(self, number: int) -> None:
        """Do not wait for the answer to the request *number*, whatever it is."""
        self._unheard.add(number)

    def settle(self) -> None:
        """Wait for what was ignored: from now on, somebody else may listen to the server."""
        while self._unheard:
            if not self._is_unheard(self._receive()[1]):
                raise OSError(errno.EPROTO, "an answer of the far side fits no request")

    def _is_unheard(self, body: bytes) -> bool:
        """Whether that is an answer that nobody waits for, which has come now."""
        number = int.from_bytes(body[:4], "big")
        is_one = number in self._unheard
        self._unheard.discard(number)
        return is_one

    def extended(self, name: bytes, body: bytes, patience: float | None = None) -> bytes:
        """One of OpenSSH's own requests; what the answer holds."""
        return self.ask(EXTENDED, packed(name) + body, patience)[1]

    def _send(self, kind: int, body: bytes) -> None:
        self._pipes.say(struct.pack(">IB", len(body) + 1, kind) + body)

    def _receive(self, patience: float | None = None) -> tuple[int, bytes]:
        length, kind = struct.unpack(">IB", self._pipes.hear(5, patience))
        if not 0 < length <= _LONGEST:
            raise OSError(errno.EPROTO, "the far side speaks no SFTP")
        return kind, self._pipes.hear(length - 1)


class SftpFile:
    """An open file over there."""

    def __init__(self, sftp: Sftp, handle: bytes) -> None:
        self._sftp, self.handle = sftp, packed(handle)

    def close(self) -> None:
        """Close it; with the conversation it is closed anyway."""
        if not self._sftp.lost:
            self._sftp.ask(_CLOSE, self.handle)

    def leave(self) -> None:
        """Close it, and do not wait for that."""
        if not self._sftp.lost:
            self._sftp.ignore(self._sftp.request(_CLOSE, self.handle))

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return _attributes(self._sftp.ask(_FSTAT, self.handle)[1])[0]

    def read(self, offset: int, length: int) -> bytes:
        """What lies there; shorter only at the end of the file."""
        found = bytearray()
        for _ in range(_MOST_SHORT):
            missing = length - len(found)
            content = self._read_once(offset + len(found), missing)
            found += content
            if not content or len(content) == missing:
                return bytes(found)
        raise OSError(errno.EPROTO, "the far side gives too little at a time")

    def _read_once(self, offset: int, length: int) -> bytes:
        """What the server gives of that up to its first short answer; nothing at the end of the file."""
        parts = [(at, min(MOST, offset + length - at)) for at in range(offset, offset + length, MOST)]
        asked = [self._sftp.request(READ, self.handle + struct.pack(">QI", *part)) for part in parts]
        found = bytearray()
        for number, (at, wanted) in zip(asked, parts, strict=True):
            kind, body = self._sftp.answer(number)
            content = string(body)[0] if kind == DATA else b""
            if len(content) > wanted:
                raise OSError(errno.EPROTO, "the far side gives more than was asked for")
            if offset + len(found) == at:  # behind a gap, it is asked for again
                found += content
        return bytes(found)

    def write(self, offset: int, content: bytes | memoryview) -> None:
        """Write all of *content* there."""
        parts = [(offset + at, bytes(content[at : at + MOST])) for at in range(0, len(content), MOST)]
        for some in _batches(parts):
            asked = [self._sftp.request(WRITE, self.handle + struct.pack(">Q", at) + packed(part)) for at, part in some]
            self._hear(asked)

    def _hear(self, asked: list[int]) -> None:
        """All answers, also those behind one that says what failed."""
        for at, number in enumerate(asked, 1):
            try:
                self._sftp.answer(number)
            except OSError:
                for other in asked[at:]:
                    self._sftp.ignore(other)
                raise

    def clear(self, offset: int, length: int) -> None:
        """Write zeros: SFTP has no holes."""
        self.write(offset, bytes(length))

    def resize(self, size: int) -> None:
        """Cut it off, or extend it with zeros."""
        self._sftp.ask(_FSETSTAT, self.handle + struct.pack(">IQ", _SIZE, size), PATIENCE)

    def take(self, source: object, start: int, offset: int, length: int) -> bool:
        """Let the server copy, if it can."""
        if _COPY not in self._sftp.extensions or not isinstance(source, SftpFile):
            return False
        where = struct.pack(">QQ", start, length)
        self._sftp.extended(_COPY, source.handle + where + self.handle + struct.pack(">Q", offset))
        return True

    def data(self, start: int) -> int:
        """Anything may be data: SFTP does not say where holes are."""
        return start

    def sync(self) -> None:
        """Have the server sync it, if it can."""
        if FSYNC in self._sftp.extensions:
            self._sftp.extended(FSYNC, self.handle, PATIENCE)


class SftpTarget:
    """The folder of *path* on the far side. *shown*: the URL as the user has it."""

    shows_neighbours = True

    def __init__(self, sftp: Sftp, path: str, shown: str) -> None:
        self._sftp = sftp
        self._folder, self.name = os.path.split(path)
        self.shown = shown
        self.extensions = sftp.extensions

    def open(self, name: str, *, writable: bool) -> SftpFile:
        """Open a regular file; a link is none."""
        mode = _attributes(self._sftp.ask(_LSTAT, self._place(name))[1])[1]
        if mode and mode & 0o170000 != _REGULAR:
            raise Refused(f"{name} beside {self.shown} is not a regular file", hint="name another path")
        return self._open(self._place(name), _FXF_READ | (_FXF_WRITE if writable else 0))

    def create(self, name: str) -> SftpFile:
        """Make a new, empty file that only its owner can read."""
        if self.exists(name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        return self._open(self._place(name), _FXF_READ | _FXF_WRITE | _FXF_CREAT | _FXF_EXCL)

    def _open(self, place: bytes, flags: int) -> SftpFile:
        mode = struct.pack(">III", flags, _PERMISSIONS, 0o600) if flags & _FXF_CREAT else struct.pack(">II", flags, 0)
        return SftpFile(self._sftp, string(self._sftp.ask(_OPEN, place + mode)[1])[0])

    def claim(self) -> None:
        """Nothing tells a host that comes back that it is not to write any more."""

    def clone(self, name: str, fresh: str) -> bool:
        """SFTP has no clones."""
        return False

    def exists(self, name: str) -> bool:
        """Whether anything lies there."""
        try:
            self._sftp.ask(_LSTAT, self._place(name))
        except FileNotFoundError:
            return False
        return True

    def rename(self, name: str, wanted: str) -> None:
        """At once where the server can; else the file that has the name is removed before."""
        both = self._place(name) + self._place(wanted)
        if _RENAME_ONTO in self._sftp.extensions:
            self._sftp.extended(_RENAME_ONTO, both, PATIENCE)
            return
        self.unlink(wanted)
        self._sftp.ask(_RENAME, both)

    def rename_fresh(self, name: str, wanted: str) -> None:
        """Give a file the name *wanted*, which no other file may have (draft-ietf-secsh-filexfer-02, 6.5)."""
        self._sftp.ask(_RENAME, self._place(name) + self._place(wanted))

    def length(self, name: str) -> int | None:
        """Of a file, in bytes; None where there is none."""
        try:
            return _attributes(self._sftp.ask(_LSTAT, self._place(name))[1])[0]
        except FileNotFoundError:
            return None

    def unlink(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            self._sftp.ask(_REMOVE, self._place(name), PATIENCE)

    def sync_folder(self) -> None:
        """Have the server sync the folder, which OpenSSH's opens as a file; another one may not."""
        with suppress(OSError):
            folder = self._open(packed(os.fsencode(self._folder or ".")), _FXF_READ)
            try:
                folder.sync()
            finally:
                folder.close()

    def plan(self, size: int, spare: str) -> None:
        """There is room, or not."""

    def is_same_file(self, other: int) -> bool:
        """No file of this host is one over there, as far as it can tell."""
        return False

    def taken(self, size: int, fresh: int) -> int:
        """Holes take no room."""
        return fresh

    def free(self) -> int | None:
        """What a user like us can still use, if the server says that."""
        found = self.room()
        return None if found is None else found[0]

    def room(self) -> tuple[int, int] | None:
        """The same, and what the file system has in all."""
        if _STATVFS not in self._sftp.extensions:
            return None
        found = self._sftp.extended(_STATVFS, packed(os.fsencode(self._folder or ".")))
        _, unit, all_of_it, _, available = struct.unpack_from(">5Q", found.ljust(40, b"\0"))
        return int(available * unit), int(all_of_it * unit)

    def _place(self, name: str) -> bytes:
        return packed(os.fsencode(os.path.join(self._folder, name)))  # noqa: PTH118 - a path over there


def packed(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def string(body: bytes) -> tuple[bytes, bytes]:
    """The string that *body* begins with, and what follows. Raises OSError."""
    length = int.from_bytes(body[:4], "big")
    if len(body) < 4 + length:
        raise OSError(errno.EPROTO, "an answer of the far side is too short")
    return body[4 : 4 + length], body[4 + length :]


def _attributes(body: bytes) -> tuple[int, int]:
    """Size and mode; 0 for what the server does not say."""
    flags, rest = int.from_bytes(body[:4], "big"), body[4:]
    size = 0
    if flags & _SIZE:
        size, rest = int.from_bytes(rest[:8], "big"), rest[8:]
    rest = rest[8:] if flags & 0x02 else rest  # owner and group
    return size, int.from_bytes(rest[:4], "big") if flags & _PERMISSIONS else 0


def _batches(parts: list[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """So many at a time that no pipe between us and the server fills up with answers."""
    for begin in range(0, len(parts), 16):
        yield parts[begin : begin + 16]
