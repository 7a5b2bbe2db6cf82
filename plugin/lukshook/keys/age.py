"""`age:FILE`: a key in a file that is encrypted with age(1) to several people or devices.

In the folder of FILE are `age.identity`, which this host decrypts it with, and `age.recipients`, who can decrypt a new
one. Words behind FILE name other files: `age:FILE identity=PATH recipients=PATH`.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from attrs import evolve, frozen

from lukshook.errors import Denied, Unavailable
from lukshook.keys.key_sources import MOST_BYTES, Asking, put_in_place, write_new
from lukshook.system import ownership
from lukshook.system.command import Command, CommandFailed, Effect, SystemRunner, find_tool, output_of
from lukshook.system.secret import Secret
from lukshook.system.text import fault_of_path

#: Seconds for a device that waits for a touch, or a person who types a PIN.
_SECONDS = 300.0


@frozen
class _Files:
    """What the argument of the source names."""

    file: str
    identity: str
    recipients: str
    options: tuple[str, ...]

    def argument(self) -> str:
        """The argument that names these."""
        return shlex.join((self.file, *self.options))

    def beside(self, ending: str) -> _Files:
        """The same with another file in the same folder."""
        return evolve(self, file=self.file + ending)


def check(argument: str) -> str:
    """A file, and two others at most; all paths are absolute."""
    try:
        file, *options = shlex.split(argument) or [""]
    except ValueError as error:
        return str(error).lower()
    paths = [option.partition("=")[2] for option in options]
    names = [option.partition("=")[0] for option in options]
    if not set(names) <= {"identity", "recipients"} or len(set(names)) < len(names):
        return "only identity=PATH and recipients=PATH may follow the file"
    for path in (file, *paths):
        fault = fault_of_path(path) or ("" if path.startswith("/") else "an absolute path")
        if fault:
            return f"each file has to be {fault}"
    return ""


def obtain(argument: str, asking: Asking) -> bytearray:
    """Let age decrypt the file. It may ask on the terminal, or wait for a touch."""
    files = _parsed(argument)
    _check_file(files)
    _check_identity(files)
    argv = (find_tool("age"), *_decrypting(files)[1:], "--", files.file)
    return output_of(argv, asking.environment, _SECONDS, MOST_BYTES)


def shown(argument: str) -> str:
    """age itself."""
    files = _parsed(argument)
    return shlex.join((*_decrypting(files), "--", files.file))


def store(argument: str, text: str) -> None:
    """Encrypt a new key to all recipients, and write it only after this host's identity has opened it.

    Raises `Exists`, `Unavailable`, and `Denied` where another user could add a recipient.
    """
    files = _parsed(argument)
    _check_recipients(files)
    _check_identity(files)
    encrypted = _through_age(_encrypting(files), f"{text}\n", "the key cannot be encrypted")
    opened = _through_age(_decrypting(files), encrypted, f"the identity {files.identity} does not open the new key")
    if opened != f"{text}\n":
        raise Denied("age gave back a different key", hint=f"are {files.recipients} and {files.identity} right?")
    write_new(files.file, encrypted.encode())


def staged(argument: str) -> str:
    """In the same folder, so that it can be renamed."""
    return _parsed(argument).beside(".new").argument()


def replace(argument: str) -> None:
    """Rename the new file over the old one. Raises `Unavailable`."""
    files = _parsed(argument)
    put_in_place(files.beside(".new").file, files.file)


def _parsed(argument: str) -> _Files:
    file, *options = shlex.split(argument)
    named = dict(option.split("=", 1) for option in options)
    folder = os.path.dirname(file)  # noqa: PTH120
    identity, recipients = (named.get(name, f"{folder}/age.{name}") for name in ("identity", "recipients"))
    return _Files(file, identity, recipients, tuple(options))


def _decrypting(files: _Files) -> tuple[str, ...]:
    return ("age", "--decrypt", f"--identity={files.identity}")


def _encrypting(files: _Files) -> tuple[str, ...]:
    return ("age", "--encrypt", "--armor", f"--recipients-file={files.recipients}")


def _through_age(argv: tuple[str, ...], given: str, fault: str) -> str:
    """What age makes of *given*. There is no terminal for it. Raises `Unavailable`, or `Denied` with *fault*."""
    secret = Secret(given.encode())
    try:
        return SystemRunner().run(Command(argv, Effect.READ, secret, timeout=_SECONDS)).out
    except CommandFailed as error:
        raise Denied(
            f"{fault}: {error.result.reason}", hint="docs/keys.md, age: who has to be among the recipients"
        ) from error
    finally:
        secret.wipe()


def _check_file(files: _Files) -> None:
    """Everybody can encrypt to the recipients: a file that another user could have written may have that one's key."""
    try:
        faults = ownership.faults_of(Path(files.file), os.geteuid())
    except FileNotFoundError as error:
        raise Unavailable(
            f"the key file {files.file} is not there",
            hint="is its file system mounted? create a key with: lukshook create or lukshook key new",
        ) from error
    except OSError as error:
        raise Denied(
            f"the key file {files.file} cannot be read: {error.strerror}", hint="name a file, not a folder or a device"
        ) from error
    if faults:
        raise Denied(
            f"another user could have written the key file {files.file}: {ownership.in_words(faults)}",
            hint=ownership.remedies(faults),
        )


def _check_identity(files: _Files) -> None:
    try:
        ownership.check_private(f"the age identity {files.identity}", files.identity, os.stat(files.identity))
    except OSError as error:
        raise Unavailable(
            f"the age identity {files.identity} cannot be read: {error.strerror}",
            hint=f"age-keygen -o {shlex.quote(files.identity)}, or name another: age:FILE identity=PATH",
        ) from error


def _check_recipients(files: _Files) -> None:
    try:
        faults = ownership.faults_of(Path(files.recipients), os.geteuid())
    except OSError as error:
        raise Unavailable(
            f"the list of recipients {files.recipients} cannot be read: {error.strerror}",
            hint="one on a line; the first is this host's: "
            f"age-keygen -y {shlex.quote(files.identity)} > {shlex.quote(files.recipients)}",
        ) from error
    if faults:
        raise Denied(
            f"others can add themselves to the recipients {files.recipients}: {ownership.in_words(faults)}",
            hint=ownership.remedies(faults),
        )


class _Shell:
    """The same by hand."""

    def is_missing(self, argument: str) -> bool:
        """Whether there is no such file."""
        return not Path(_parsed(argument).file).exists()

    def making(self, line: str, argument: str) -> str:
        """Encrypted before it is on disk."""
        files = _parsed(argument)
        return f"{line} | {shlex.join(_encrypting(files))} > {shlex.quote(files.file)}"

    def kept(self, argument: str) -> str:
        """Beside it."""
        return _parsed(argument).beside(".old").argument()

    def replacing(self, argument: str, fresh: str) -> list[str]:
        """A second name for the old file, then the new one over the first."""
        place, kept, new = (shlex.quote(_parsed(one).file) for one in (argument, self.kept(argument), fresh))
        return [f"ln -- {place} {kept}", f"mv -- {new} {place}"]


by_hand = _Shell()
