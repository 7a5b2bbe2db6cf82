"""A store that shows qemu another header than it showed lukshook: it has no effect, because qemu reads none."""

from __future__ import annotations

import base64
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lukshook.errors import Unavailable
from lukshook.layers import qemu_start
from support.daemons import daemons
from support.lukshook_process import Done
from support.qemu_daemon import OFFSET, luks_image
from support.volume import NAME, CliVolume

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4")
#: LUKS On-Disk Format 1.2: cipher-mode, payload-offset.
CIPHER_MODE, PAYLOAD = 40, 104


def header_of(image: Path) -> bytes:
    with image.open("rb") as file:
        return file.read(OFFSET)


def write_header(image: Path, header: bytes) -> None:
    descriptor = os.open(image, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, header, 0)
    finally:
        os.close(descriptor)


def changed(header: bytes, at: int, field: bytes) -> bytes:
    return header[:at] + field + header[at + len(field) :]


def foreign(header: bytes, volume: CliVolume) -> bytes:
    """The header of a volume whose key is the same: a volume key that the attacker knows."""
    text = base64.b64encode(volume.key.read_bytes())
    return header_of(luks_image(volume.folder / "foreign", 1 << 20, key=text))


#: What the store shows once lukshook has judged the header.
HEADERS: dict[str, Callable[[bytes, CliVolume], bytes]] = {
    "zeroes": lambda header, _: bytes(len(header)),
    "another cipher": lambda header, _: changed(header, CIPHER_MODE, b"cbc-plain64".ljust(32, b"\0")),
    "another place of the data": lambda header, _: changed(header, PAYLOAD, (4104).to_bytes(4, "big")),
    "a foreign volume key": foreign,
}


def started(volume: CliVolume, before: Callable[[], None]) -> Done:
    """A backup begins, and *before* is called right before qemu is started."""
    start = qemu_start._start

    def prepare() -> None:
        def starting(*arguments: object) -> None:
            before()
            start(*arguments)  # type: ignore[arg-type]

        pytest.MonkeyPatch().setattr(qemu_start, "_start", starting)

    return volume.start("before-backup", NAME, prepare=prepare).wait()


@pytest.mark.parametrize("kind", HEADERS)
def test_another_header_for_qemu_has_no_effect(volume: CliVolume, kind: str) -> None:
    """The volume opens as it was judged, what is written is encrypted as before, and the store's header stays."""
    good = header_of(volume.image)
    bad = HEADERS[kind](good, volume)
    assert bad != good

    done = started(volume, lambda: write_header(volume.image, bad))

    assert (0, "") == (done.returncode, done.stderr)
    (volume.data / "file").write_text("content")
    os.sync()
    assert bad == header_of(volume.image)
    write_header(volume.image, good)
    volume.do("after-backup", NAME)
    volume.do("before-backup", NAME)
    assert "content" == (volume.data / "file").read_text()
    volume.do("after-backup", NAME)


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _cannot(*_: object) -> None:
    raise Unavailable("the daemon does not answer", hint="")


@pytest.mark.parametrize(("fault", "status"), [(_die, -signal.SIGKILL), (_cannot, 69)], ids=["killed", "no answer"])
def test_a_daemon_that_does_not_show_the_plaintext_yet_is_ended(
    volume: CliVolume, fault: Callable[..., None], status: int
) -> None:
    """By lukshook itself, or by the next one, which then has a new daemon."""

    def prepare() -> None:
        pytest.MonkeyPatch().setattr(qemu_start, "_show", fault)

    done = volume.start("before-backup", NAME, prepare=prepare).wait()

    assert status == done.returncode
    assert (1 if fault is _die else 0) == len(daemons(volume))
    volume.do("before-backup", NAME)
    (volume.data / "file").write_text("content")
    volume.do("after-backup", NAME)
    assert [] == daemons(volume)
