"""The mapping: LUKS on dm-crypt. The header is copied, judged and only then opened, and the result read back."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from attrs import evolve, frozen

from lukshook.errors import Denied, Refused, Unavailable
from lukshook.layers.base import LayerSpec, Opening
from lukshook.layers.mapping import GONE_SECONDS, NODES, MappingHandle
from lukshook.luks import header
from lukshook.luks.model import UNLOCK_SECONDS
from lukshook.system import kernel
from lukshook.system.command import Command, CommandFailed, Runner, change, descriptor_path, read
from lukshook.system.secret import key_options

TOOLS: tuple[str, ...] = ("cryptsetup", "dmsetup")
_SECTOR = 512
#: The fields that every table of dm-crypt has (admin-guide/device-mapper/dm-crypt.rst).
_CRYPT_FIELDS = 8
#: What device-mapper keeps of a uuid and of a name (linux/dm-ioctl.h, less the NUL behind each).
_UUID_BYTES, _NAME_BYTES = 128, 127


@frozen(repr=False)
class Spec(LayerSpec):
    """*discard*: tell the store which blocks are unused. Off, because it shows the store how full the volume is."""

    discard: bool = False

    def open_commands(self, below: str, opening: Opening) -> tuple[Command, ...]:
        """One `cryptsetup open`. When it is run for real it gets the judged copy of the header as well."""
        return (evolve(_open(self, below, opening, "luks"), stdin_from=opening.key_from),)

    def expect(self, below: str, opening: Opening) -> Handle:
        """The node of the mapping."""
        name = mapping_name(opening.label)
        return Handle(NODES + name, name, "", "", "")

    def open(self, below: str, opening: Opening) -> Handle:
        """Copy and judge the header, unlock with that very copy, and read back what the kernel maps.

        Raises `Refused` (header not as known; the key was not read then), `Denied` (wrong key), `Unavailable`.
        """
        name = mapping_name(opening.label)
        if kernel.mapping(name) is not None:
            raise Unavailable(
                f"a mapping {name} already exists, and lukshook did not create it",
                hint=f"look at it with: cryptsetup status {name}",
            )
        copy, size = _copy(below, opening)
        judged = opening.trust.judge(copy, size)
        _check_sectors(judged, size, opening)
        _unlock(lambda header: _open(self, below, opening, judged.type, *header), opening, judged, copy)
        handle = Handle(NODES + name, name, _uuid(judged.type, judged.uuid, name), _number(name), kernel.number(below))
        try:
            _read_back(handle, judged, size, opening.runner)
        except Refused:
            handle.close(opening.runner)
            raise
        return handle

    def find(self, below: str, opening: Opening) -> Handle | None:
        """A mapping of our name on the device below."""
        found = kernel.mapping(mapping_name(opening.label))
        try:
            under = kernel.number(below)
        except OSError:
            return None
        if found is None or under not in found.under:
            return None
        return Handle(NODES + found.name, found.name, found.uuid, found.number, under)


@frozen(repr=False)
class Handle(MappingHandle):
    """An open mapping: node, name, device-mapper uuid, device number, and the number of the device under it."""

    def close_commands(self) -> tuple[Command, ...]:
        """Close the mapping, which wipes the volume key from the kernel."""
        return (change("cryptsetup", "close", "--", self.name, timeout=GONE_SECONDS),)


def longest_volume() -> int:
    """How long a volume's name can be: the kernel keeps 128 bytes of a mapping's uuid (DM_UUID_LEN), 127 of its name.

    A longer uuid is truncated without an error, and would look like that of another mapping.
    """
    return min(_UUID_BYTES - len(_uuid("luks2", "0" * 32, mapping_name(""))), _NAME_BYTES - len(mapping_name("")))


def mapping_name(volume: str) -> str:
    """The same for a volume every time, so that a mapping without a record is found again."""
    return f"lukshook-{volume}"


def _open(spec: Spec, below: str, opening: Opening, kind: str, *options: str) -> Command:
    chosen = [*options, *key_options()]
    if spec.discard and not opening.read_only:
        chosen.append("--allow-discards")
    if opening.read_only:
        chosen.append("--readonly")
    name = mapping_name(opening.label)
    return change("cryptsetup", "open", "--type", kind, *chosen, "--", below, name, timeout=UNLOCK_SECONDS)


def _check_sectors(judged: header.Header, size: int, opening: Opening) -> None:
    """Check that cryptsetup can map the whole image. One that is known to be too short is refused for that."""
    try:
        header.check_sectors(f"the image of volume {opening.volume}", judged, size)
    except Refused:
        opening.trust.extent(None)
        raise


def _copy(below: str, opening: Opening) -> tuple[header.Copy, int]:
    descriptor = os.open(below, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return opening.header_in(descriptor), os.lseek(descriptor, 0, os.SEEK_END)
    except OSError as error:
        raise Unavailable(f"the header cannot be read: {error.strerror}", hint="does the store work?") from error
    finally:
        os.close(descriptor)


def _unlock(
    command: Callable[[tuple[str, ...]], Command], opening: Opening, judged: header.Header, copy: header.Copy
) -> None:
    """Run *command* with the options for the judged copy of the header, and the key."""
    memory = copy.memfd()
    try:
        key = opening.key()
        try:
            opening.trust.vouch(judged, key)
            with_header = command(("--header", descriptor_path(memory)))
            opening.runner.run(evolve(with_header, stdin=key, stdin_from=opening.key_from, fds=(memory,)))
        except CommandFailed as error:
            raise _translate(error, opening.volume) from error
        finally:
            key.wipe()
    finally:
        os.close(memory)


def size(handle: Handle) -> int:
    """Bytes the mapping has now. Raises OSError."""
    return kernel.block_size(handle.path)


def grow_commands(spec: Spec, handle: Handle, opening: Opening) -> tuple[Command, ...]:
    """One `cryptsetup refresh`, which takes the size that the device under it has now."""
    return (evolve(_refresh(spec, handle, "luks"), stdin_from=opening.key_from),)


def _refresh(spec: Spec, handle: Handle, kind: str, *options: str) -> Command:
    """Not `cryptsetup resize`: that has no --header (2.6.1) and would read whatever header the store shows by then."""
    chosen = [*options, *key_options()]
    if spec.discard:
        chosen.append("--allow-discards")  # a refresh drops the flags it is not given
    return change("cryptsetup", "refresh", "--type", kind, *chosen, "--", handle.name, timeout=UNLOCK_SECONDS)


def grow(spec: Spec, handle: Handle, below: str, opening: Opening) -> None:
    """Make the open mapping as large as the device below is now; its users do not notice.

    The header is copied and judged again, that copy is used, and the kernel's table is compared with it. Raises as
    `open` does.
    """
    copy, size = _copy(below, opening)
    judged = opening.trust.judge(copy, size)
    _unlock(lambda header: _refresh(spec, handle, judged.type, *header), opening, judged, copy)
    _read_back(handle, judged, size, opening.runner)


def compare(handle: Handle, judged: header.Header, runner: Runner) -> None:
    """Check that an open mapping is that of the judged header, whatever its length is now. Raises `Refused`."""
    if judged.uuid.replace("-", "") not in handle.uuid:
        raise Refused(
            f"the mapping {handle.name} does not belong to the image's header",
            hint="nothing was changed; close it first",
        )
    _read_back(handle, judged, None, runner)


def _translate(error: CommandFailed, volume: str) -> Exception:
    """cryptsetup's exit statuses: 2 no permission (wrong key), 3 out of memory, 5 busy or exists (cryptsetup(8))."""
    if error.result.code == 2:
        return Denied(
            f"the key does not open volume {volume}",
            hint=f"check which key is expected with: lukshook key test {volume}",
        )
    if error.result.code == 3 or error.result.code < 0:
        return Unavailable(
            f"not enough memory to derive the key of volume {volume}",
            hint="an argon2 key slot needs up to 1 GiB; lukshook key rotate creates one that needs less",
        )
    reason = error.result.reason
    if "device-mapper" in reason or "dm_mod" in reason or "dm-crypt" in reason:
        return Unavailable(
            f"volume {volume} cannot be mapped: {reason}",
            hint='the kernel engine needs root and dm-crypt; else use engine = "userspace"',
        )
    return error


def _uuid(kind: str, uuid: str, name: str) -> str:
    """How cryptsetup names a mapping in the kernel: CRYPT-<type>-<uuid without dashes>-<name>."""
    return f"CRYPT-{kind.upper()}-{uuid.replace('-', '')}-{name}"


def _number(name: str) -> str:
    found = kernel.mapping(name)
    if found is None:
        raise Unavailable(
            f"the mapping {name} did not appear", hint="is udev running? dmsetup info shows what the kernel has"
        )
    return found.number


def _read_back(handle: Handle, judged: header.Header, size: int | None, runner: Runner) -> None:
    """Compare the live table with the judged header: independent of what cryptsetup made of it.

    *size*: bytes of the device below, None where the mapping may not have its length yet.
    """
    if not handle.inspect():
        raise Refused(f"the mapping {handle.name} is not the one that was opened", hint="nothing was mounted")
    table = live_table(handle.name, runner)
    if len(table) < _CRYPT_FIELDS:
        raise Refused(f"the mapping {handle.name} does not decrypt", hint="nothing was mounted; is it being replaced?")
    expected = {
        "start": ("0", table[0]),
        "length": (
            table[1]
            if size is None
            else str((size - judged.offset) // judged.sector_size * judged.sector_size // _SECTOR),
            table[1],
        ),
        "target": ("crypt", table[2]),
        "cipher": (judged.cipher, table[3]),
        "key size": (str(judged.key_bytes), _key_bytes(table[4])),
        "IV offset": ("0", table[5]),
        "device": (handle.under, table[6]),
        "offset": (str(judged.offset // _SECTOR), table[7]),
        "sector size": (str(judged.sector_size), _option(table[8:], "sector_size", str(_SECTOR))),
    }
    for what, (wanted, found) in expected.items():
        if wanted != found:
            raise Refused(
                f"the kernel maps {handle.name} with {what} {found}, the header says {wanted}",
                hint="nothing was mounted; was the header replaced while the volume was being opened?",
            )


def live_table(name: str, runner: Runner) -> list[str]:
    """The fields of the table of mapping *name* as the kernel has it, without the key (dmsetup(8))."""
    return re.findall("[^ \n]+", runner.run(read("dmsetup", "table", name)).out)


def _key_bytes(field: str) -> str:
    """The key's size: `:64:logon:...` for one in the kernel keyring, else hexadecimal zeroes of its length."""
    match = re.match(r":([0-9]+):", field)
    return match[1] if match else str(len(field) // 2)


def _option(fields: list[str], name: str, default: str) -> str:
    found = (field.partition(":")[2] for field in fields if field.startswith(name + ":"))
    return next(found, default)
