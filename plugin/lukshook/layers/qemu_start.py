"""Starting a qemu-storage-daemon that decrypts an image by the header that was judged.

qemu reads a header itself, and a store can show it another one than it showed us. So the daemon opens the volume on a
file in memory, which holds the judged header and is as long as the image. Then it is asked to go on with the image
(`blockdev-reopen`), from which it never reads a header, and only after that to show the plaintext.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from lukshook.errors import Denied, Unavailable
from lukshook.layers import qemu_process
from lukshook.layers.base import Opening
from lukshook.luks.header import Copy
from lukshook.system import kernel, processes
from lukshook.system.command import Command, CommandFailed, descriptor_path
from lukshook.system.secret import Secret

if TYPE_CHECKING:
    from lukshook.system.qmp import Monitor

#: The image's node in the daemon, that of the header in memory, and that of the plaintext.
IMAGE, _HEADER, _VOLUME = "image", "header", "volume"
_OPEN_SECONDS = 60.0
#: The first version of qemu whose FUSE export takes several threads; and how many it gets at most.
_SHARED_EXPORT = (10, 1)
_MOST_THREADS = 4
#: The daemon keeps the memory of one request for the next. glibc gives large blocks back at once, so that the pages of
#: qemu's buffers, up to 1 MiB each, are faulted in again: a quarter of its time when it reads (qemu 7.2, Linux 6.18).
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4194304:glibc.malloc.trim_threshold=67108864"}
#: How the daemon reads and writes. Threads end sooner. But of their writes to a file of FUSE the kernel carries out one
#: after the other (fuse_direct_write_iter in fs/fuse/file.c): over a slow line, each would wait for the one before.
_AIO, _REMOTE_AIO = "threads", "native"
#: What qemu says of a secret that opens no key slot (crypto/block-luks.c).
WRONG_KEY = "Invalid password"
_HINT = "the userspace engine needs /dev/fuse, readable and writable for this user"


@frozen(repr=False)
class Manner:
    """How a daemon is started. *discard*: as in `qemu.Spec`. *direct*: past the page cache. *remote*: a process of ours
    shows the image, which is at a remote place.

    *folder*: a descriptor of our private folder, for a daemon that gets a monitor there so that it can record what is
    written. It keeps the descriptor: the address of a socket is short (unix(7)), the name of a folder need not be.
    """

    discard: bool
    remote: bool
    direct: bool = True
    folder: int | None = None


def manner(below: str, *, discard: bool) -> Manner:
    """How a daemon is started for the image *below*, if its store can do all that a store can."""
    return Manner(discard, kernel.mount_at(below) is not None)


def by_hand(below: str, opening: Opening, manner: Manner) -> Command:
    """What a person would type. qemu reads the header in the image then."""
    luks = _words({**_volume(opening, manner), "file": IMAGE})
    return _command(
        opening, _image(below, opening, manner), f"--blockdev={luks}", f"--export={_words(_export(opening))}"
    )


def start(opening: Opening, header: Copy, image: int, text: Secret, wanted: Manner) -> Manner:
    """Have a daemon show the plaintext of the open *image*, whose header is *header*; how it was started.

    *text*: the key as the daemon reads it. *wanted*: as `manner` says. Leaves nothing when it raises `Denied` or
    `Unavailable`.
    """
    memory = header.memfd(os.fstat(image).st_size)
    try:
        with _manners(opening, wanted) as manners:
            for manner in manners:
                try:
                    _start(opening, manner, memory, image, text)
                except CommandFailed as error:
                    if WRONG_KEY in error.result.err:
                        raise _wrong_key(opening) from error
                    failure = error
                else:
                    return manner
    finally:
        os.close(memory)
    raise _impossible(opening, failure.result.reason) from failure


@contextmanager
def _manners(opening: Opening, wanted: Manner) -> Iterator[tuple[Manner, ...]]:
    """In the order in which they are tried: a store such as tmpfs may have no direct I/O, and no recorder is worth an
    opening."""
    plain = (wanted, evolve(wanted, direct=False))
    if opening.recording is None or opening.read_only:
        yield plain
        return
    folder = os.open(opening.run_folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield (*(evolve(manner, folder=folder) for manner in plain), *plain)
    finally:
        os.close(folder)


def _start(opening: Opening, manner: Manner, memory: int, image: int, text: Secret) -> None:
    """Start it, and ask it over a connection that nobody else has, and that ends with this. Raises `CommandFailed`."""
    from lukshook.system import qmp  # noqa: PLC0415 - only where a daemon is started

    ours, theirs = qmp.pair()
    with ours:
        with theirs:
            command = _command(
                opening,
                f"--blockdev=driver=file,node-name={_HEADER},filename={descriptor_path(memory)},read-only=on",
                _image(descriptor_path(image), opening, manner),
                f"--blockdev={_words({**_volume(opening, manner), 'file': _HEADER, 'read-only': True})}",
                *_monitor(opening, manner),
                f"--chardev=socket,id=opener,fd={theirs.fileno()}",
                "--monitor=chardev=opener",
            )
            fds = (image, memory, theirs.fileno(), *(() if manner.folder is None else (manner.folder,)))
            opening.runner.run(evolve(command, stdin=text, fds=fds))
        try:
            _show(opening, manner, qmp.over(ours))
        except BaseException as error:
            _give_up(opening)
            if isinstance(error, qmp.Rejected):
                raise _impossible(opening, error.message) from error
            raise


def _show(opening: Opening, manner: Manner, daemon: Monitor) -> None:
    """Go on with the image, and then show the plaintext. Raises `Unavailable`."""
    volume = {**_volume(opening, manner), "file": IMAGE, "read-only": opening.read_only}
    daemon.ask("blockdev-reopen", {"options": [volume]})
    daemon.ask("blockdev-del", {"node-name": _HEADER})
    daemon.ask("block-export-add", {**_export(opening), **_threads(daemon)})


def _threads(daemon: Monitor) -> dict[str, object]:
    """Threads that serve one export together, each of which encrypts. An earlier qemu has one for all of it."""
    number = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    if daemon.version < _SHARED_EXPORT or number == 1:
        return {}
    names = [f"io{index}" for index in range(number)]
    for name in names:
        daemon.ask("object-add", {"qom-type": "iothread", "id": name})
    return {"iothread": names}


def _give_up(opening: Opening) -> None:
    """End a daemon that does not do what it was asked."""
    plain = qemu_process.plain_file(opening)
    pid = qemu_process.pid(plain)
    started = kernel.started(pid) if pid else None
    if started is not None:
        with processes.watched(pid) as process:
            qemu_process.end(pid, started, process)
    qemu_process.drop(os.fspath(plain), opening.runner)


def _command(opening: Opening, *options: str) -> Command:
    """It reads the base64 text of the key without a line end, because qemu takes no bytes that are not UTF-8."""
    pid_file = qemu_process.pid_option(qemu_process.plain_file(opening))
    return Command(
        (qemu_process.PROGRAM, "--daemonize", pid_file, "--object=secret,id=key,file=/dev/stdin", *options),
        stdin_from=f"{opening.key_from} | base64 --wrap=0",
        timeout=_OPEN_SECONDS,
        environment=ENVIRONMENT,
        stays=True,
    )


def _image(place: str, opening: Opening, manner: Manner) -> str:
    options = {"driver": "file", "node-name": IMAGE, "filename": place}
    direct = {"cache.direct": True, "aio": _REMOTE_AIO if manner.remote else _AIO} if manner.direct else {}
    return f"--blockdev={_words({**options, **direct, **_passed_on(opening, manner)})}"


def _volume(opening: Opening, manner: Manner) -> dict[str, object]:
    """The node of the plaintext, but for the file that it stands on."""
    return {"driver": "luks", "node-name": _VOLUME, "key-secret": "key", **_passed_on(opening, manner)}


def _passed_on(opening: Opening, manner: Manner) -> dict[str, object]:
    """The options of each node."""
    discard = {"discard": "unmap"} if manner.discard else {}
    return {**discard, **({"read-only": True} if opening.read_only else {})}


def _export(opening: Opening) -> dict[str, object]:
    writable = {} if opening.read_only else {"writable": True}
    plain = os.fspath(qemu_process.plain_file(opening))
    return {"type": "fuse", "id": "plain", "node-name": _VOLUME, "mountpoint": plain, "allow-other": "off", **writable}


def _monitor(opening: Opening, manner: Manner) -> tuple[str, ...]:
    """A monitor in our private folder: who reaches it has power over the daemon."""
    if manner.folder is None:
        return ()
    name = qemu_process.beside(qemu_process.plain_file(opening), qemu_process.MONITOR).name
    place = escaped(f"{descriptor_path(manner.folder)}/{name}")
    return (f"--chardev=socket,id=monitor,path={place},server=on,wait=off", "--monitor=chardev=monitor")


def _words(options: Mapping[str, object]) -> str:
    """Options as they are written in an argument."""
    return ",".join(f"{name}={escaped(_word(value))}" for name, value in options.items())


def _word(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def escaped(text: str) -> str:
    """A value inside a list of options, where a comma is written twice (qemu(1))."""
    return text.replace(",", ",,")


def _impossible(opening: Opening, reason: str) -> Unavailable:
    return Unavailable(f"volume {opening.volume} cannot be decrypted: {reason}", hint=_HINT)


def _wrong_key(opening: Opening) -> Denied:
    return Denied(
        f"the key does not open volume {opening.volume}",
        hint=f"check which key is expected with: lukshook key test {opening.volume}; "
        f"to add a key slot for the userspace engine: lukshook trust {opening.volume}",
    )
