"""Making and changing LUKS headers with cryptsetup: format, token, backup. Opening is the layers' business."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

from attrs import evolve

from lukshook.errors import Denied
from lukshook.luks import header, header_file
from lukshook.luks.model import UNLOCK_SECONDS
from lukshook.store.image_file import ImageFile, open_image
from lukshook.system.command import Command, Effect, Runner, change, descriptor_path, read
from lukshook.system.secret import Secret, key_options

#: The key has 256 bits of entropy, so stretching it adds nothing; 1000 is the least that cryptsetup and
#: NIST SP 800-132 allow, and what systemd uses for such keys. It costs milliseconds and no memory.
LIGHT_PBKDF = ("--pbkdf", "pbkdf2", "--hash", "sha512", "--pbkdf-force-iterations", "1000")
CIPHER = ("--cipher", "aes-xts-plain64", "--key-size", "512")
#: Bytes in front of the data: LUKS2's default, room for 32 key slots.
DATA_OFFSET = 16 * 1024 * 1024
#: LUKS1's own layout with the data aligned to 1 MiB.
LUKS1_OFFSET = 4 * 1024 * 1024
#: Length of the base64 text of a key, the other form that LUKS1 headers have.
TEXT_BYTES = 44


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


def new_header(draft: Path, kind: str, key: Secret, key_from: str, runner: Runner) -> header.Copy:
    """A new header for *key*, made in the new file *draft* of ours and never on the store; *draft* is gone afterwards.

    In LUKS1 the key's text opens it too. LUKS2 has the mark of the key.
    """
    try:
        header_file.empty(draft, DATA_OFFSET if kind == "luks2" else LUKS1_OFFSET)
        runner.run(format_command(draft, kind, key, key_from))
        for form in forms(key, kind)[1:]:
            add_key(draft, key, form, runner)
        mark(draft, key, runner)
        return header_file.load(draft)
    finally:
        draft.unlink(missing_ok=True)


def add_key(file: Path, old: Secret, new: Secret, runner: Runner, key_from: str = "", slot: int | None = None) -> None:
    """Give the header in *file* (an image, or a header alone) one more key slot, which *new* opens; any lengths.

    Both secrets go through one pipe: cryptsetup reads the first --keyfile-size bytes of standard input as the key
    that is there, and then, as "-" names it again, the next --new-keyfile-size bytes as the new one (2.6.1).
    """
    both = Secret(old.reveal() + new.reveal())
    try:
        runner.run(evolve(add_key_command(file, key_from, len(old), len(new), slot), stdin=both))
    finally:
        both.wipe()


def add_key_command(file: Path, key_from: str, old: int, new: int, slot: int | None = None) -> Command:
    """What `add_key` runs for secrets of *old* and *new* bytes, one behind the other on standard input."""
    sizes = ("--key-file=-", f"--keyfile-size={old}", f"--new-keyfile-size={new}")
    chosen = () if slot is None else (f"--key-slot={slot}",)
    argv = ("cryptsetup", "luksAddKey", "--batch-mode", *LIGHT_PBKDF, *chosen, *sizes, "--", os.fspath(file), "-")
    return Command(argv, stdin_from=key_from, timeout=UNLOCK_SECONDS)


def remove_slot(file: Path, slot: int, left: Secret, runner: Runner) -> None:
    """Empty key slot *slot* of the header in *file*; cryptsetup does it only when *left* opens another one."""
    runner.run(evolve(remove_slot_command(file, slot, "", len(left)), stdin=left))


def remove_slot_command(file: Path, slot: int, key_from: str, left: int) -> Command:
    """What `remove_slot` runs for a key of *left* bytes that stays."""
    sizes = ("--key-file=-", f"--keyfile-size={left}")
    argv = ("cryptsetup", "luksKillSlot", *sizes, "--", os.fspath(file), str(slot))
    return Command(argv, stdin_from=key_from, timeout=UNLOCK_SECONDS)


def remove_key_command(file: Path, key_from: str, length: int) -> Command:
    """How a person empties the key slot that a key of *length* bytes opens; for dry runs."""
    argv = ("cryptsetup", "luksRemoveKey", "--batch-mode", "--key-file=-", f"--keyfile-size={length}")
    return Command((*argv, "--", os.fspath(file)), stdin_from=key_from, timeout=UNLOCK_SECONDS)


def slots_opened(copy: header.Copy, judged: header.Header, key: Secret, runner: Runner) -> tuple[int, ...]:
    """The key slots of a judged copy that *key* opens, as its 32 bytes or, in LUKS1, as their base64 text.

    Only the copy in our memory is given to cryptsetup. Raises `Unavailable` when that takes too long or fails.
    """
    memory = copy.memfd()
    try:
        return tuple(
            slot.number
            for slot in judged.slots
            if any(_opens(memory, judged.type, slot.number, form, runner) for form in forms(key, judged.type))
        )
    finally:
        os.close(memory)


def forms(key: Secret, kind: str) -> tuple[Secret, ...]:
    """What a key is to cryptsetup: its bytes; in LUKS1 also the base64 text, the only form that qemu takes."""
    return (key, key.text()) if kind == "luks1" else (key,)


def form_that_opens(
    copy: header.Copy, judged: header.Header, key: Secret, runner: Runner, *, without: Collection[int] = ()
) -> Secret:
    """That form of *key* which opens a key slot of a judged copy, not counting those *without*. Raises `Denied`."""
    for form in forms(key, judged.type):
        if opens(copy, judged, form, runner, without=without):
            return form
    raise Denied("the key opens none of the key slots", hint="is it the right key and the right image?")


def opens(
    copy: header.Copy, judged: header.Header, form: Secret, runner: Runner, *, without: Collection[int] = ()
) -> bool:
    """Whether exactly the bytes of *form* open a key slot of a judged copy, not counting those *without*."""
    memory = copy.memfd()
    try:
        slots = (slot.number for slot in judged.slots if slot.number not in without)
        return any(_opens(memory, judged.type, slot, form, runner) for slot in slots)
    finally:
        os.close(memory)


def _opens(memory: int, kind: str, slot: int, key: Secret, runner: Runner) -> bool:
    argv = (
        *("cryptsetup", "open", "--test-passphrase", "--type", kind, f"--key-slot={slot}"),
        *("--key-file=-", f"--keyfile-size={len(key)}", "--", descriptor_path(memory)),
    )
    command = Command(argv, Effect.READ, key, ok=frozenset({0, 2}), timeout=UNLOCK_SECONDS, fds=(memory,))
    return runner.run(command).code == 0


def mark(draft: Path, key: Secret, runner: Runner, slot: int = 0) -> None:
    """Write the key's own mark into a LUKS2 header, so that other hosts can tell that the key's owner wrote it."""
    copy = header_file.load(draft)
    judged = header.judge(copy, copy.size * 2)
    if judged.type == "luks2":
        marks = {**header.find_macs(judged), header.key_id(key): header.mac(judged, slot, key)}
        write_marks(draft, marks, judged, runner)


def remove_marks(file: Path, judged: header.Header, runner: Runner) -> None:
    """Remove our token from the header in *file*, which is *judged*."""
    for number in (token.number for token in judged.tokens):
        runner.run(change("cryptsetup", "token", "remove", f"--token-id={number}", "--", os.fspath(file)))


def write_marks(file: Path, marks: Mapping[str, str], judged: header.Header, runner: Runner) -> None:
    """Replace our token, MAC by key id, in the header in *file*, which is *judged*."""
    remove_marks(file, judged, runner)
    runner.run(
        Command(
            ("cryptsetup", "token", "import", "--json-file=-", "--", os.fspath(file)),
            stdin=Secret(header.token(marks).encode()),
            stdin_from="cat mark.json",
        )
    )


def read_header(image: Path) -> header.Header:
    """The header of an image, if it is sane. Raises `Refused`, `Unavailable`, `Denied`."""
    with open_image(image, writable=False) as there:
        return header.judge(header.copy(there.descriptor), there.size)


def backup_line(image: Path, file: Path) -> str:
    """How a person copies the header of *image* to *file*."""
    return shlex.join(("cryptsetup", "luksHeaderBackup", f"--header-backup-file={file}", "--", os.fspath(image)))


def backup_script(image: Path, file: Path) -> list[str]:
    """How a person replaces *file* with a copy of the header: cryptsetup does not write over an old one."""
    fresh = file.with_name(file.name + ".new")
    quoted = shlex.quote(os.fspath(fresh))
    return [
        f"mkdir --parents --mode=700 -- {shlex.quote(os.fspath(file.parent))}",
        f"rm --force -- {quoted}",
        backup_line(image, fresh),
        f"mv -- {quoted} {shlex.quote(os.fspath(file))}",
    ]


def restore_line(image: Path, file: Path) -> str:
    """How a person puts the header in *file* onto *image*."""
    argv = ("cryptsetup", "luksHeaderRestore", "--batch-mode", f"--header-backup-file={file}", "--", os.fspath(image))
    return shlex.join(argv)


def signatures(image: ImageFile, runner: Runner) -> tuple[str, ...]:
    """What wipefs(8) recognises in *image*: file systems, RAID, LVM, LUKS, partition tables."""
    look = image.run(
        lambda place: read("wipefs", "--no-act", "--noheadings", "--output=TYPE", "--", os.fspath(place)), runner
    )
    return tuple(dict.fromkeys(filter(None, look.out.split("\n"))))
