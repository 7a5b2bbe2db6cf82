"""Making and changing LUKS headers with cryptsetup: format, token, backup. Opening is the layers' business."""

from __future__ import annotations

import os
from pathlib import Path

from lukshook import header
from lukshook.command import Command, CommandFailed, Runner, change, read
from lukshook.errors import Unavailable
from lukshook.layers.dmcrypt import key_options
from lukshook.secret import Secret

#: The key has 256 bits of entropy, so stretching it adds nothing; 1000 is the least that cryptsetup and
#: NIST SP 800-132 allow, and what systemd uses for such keys. It costs milliseconds and no memory.
LIGHT_PBKDF = ("--pbkdf", "pbkdf2", "--hash", "sha512", "--pbkdf-force-iterations", "1000")
CIPHER = ("--cipher", "aes-xts-plain64", "--key-size", "512")
#: Bytes in front of the data: LUKS2's default, room for 32 key slots.
DATA_OFFSET = 16 * 1024 * 1024
#: LUKS1's own layout with the data aligned to 1 MiB.
LUKS1_OFFSET = 4 * 1024 * 1024


def format_command(image: Path, kind: str, key: Secret | None, key_from: str) -> Command:
    """Write a new header: everything that matters is said, so that the header's own rules can hold it to that."""
    geometry = (
        ("--sector-size", "4096", "--offset", str(DATA_OFFSET // 512))
        if kind == "luks2"
        else ("--offset", str(LUKS1_OFFSET // 512))
    )
    return Command(
        (
            "cryptsetup",
            "luksFormat",
            "--batch-mode",
            "--type",
            kind,
            *CIPHER,
            *LIGHT_PBKDF,
            *geometry,
            *key_options(),
            "--",
            os.fspath(image),
        ),
        stdin=key,
        stdin_from=key_from,
    )


def mark(image: Path, key: Secret, runner: Runner, slot: int = 0) -> None:
    """Write the key's own mark into a LUKS2 header, so that other hosts can tell that the key's owner wrote it."""
    judged = read_header(image)
    if judged.type != "luks2":
        return
    macs = {**header.find_macs(judged), header.key_id(key): header.mac(judged, slot, key)}
    write_marks(image, header.token(macs), judged, runner)


def write_marks(image: Path, text: str, judged: header.Header, runner: Runner) -> None:
    """Replace our token. Whoever looks in between finds no mark, which is no fault."""
    for number in (token.number for token in judged.tokens):
        runner.run(change("cryptsetup", "token", "remove", f"--token-id={number}", "--", os.fspath(image)))
    runner.run(
        Command(
            ("cryptsetup", "token", "import", "--json-file=-", "--", os.fspath(image)),
            stdin=Secret(text.encode()),
            stdin_from="cat mark.json",
        )
    )


def read_header(image: Path) -> header.Header:
    """The header of an image, if it is sane. Raises `Refused`, `Unavailable`."""
    try:
        descriptor = os.open(image, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"the image {image} cannot be read: {error.strerror}") from error
    try:
        return header.judge(header.copy(descriptor), os.lseek(descriptor, 0, os.SEEK_END))
    finally:
        os.close(descriptor)


def back_up_header(image: Path, file: Path, runner: Runner) -> None:
    """Keep a copy of the whole header area in *file*, replacing an older one only once the new one is whole."""
    fresh = file.with_name(file.name + ".new")
    if not runner.dry:
        fresh.unlink(missing_ok=True)
    runner.run(change("cryptsetup", "luksHeaderBackup", f"--header-backup-file={fresh}", "--", os.fspath(image)))
    if runner.dry:
        return
    descriptor = os.open(fresh, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    fresh.replace(file)


def has_signature(path: Path, runner: Runner) -> str:
    """What blkid(8) recognises at the start of *path*, or ""."""
    try:
        found = runner.run(
            read(
                "blkid",
                "--probe",
                "--output",
                "value",
                "--match-tag",
                "TYPE",
                "--",
                os.fspath(path),
                ok=(0, 2, 8),
            )
        )
    except CommandFailed:
        return "something"
    return "several signatures" if found.code == 8 else found.out.strip()
