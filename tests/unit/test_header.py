"""Which headers are taken: genuine ones, those a power cut leaves, and no forged one."""

from __future__ import annotations

import contextlib
import copy as copying
import fcntl
import json
import os
import time
from collections.abc import Iterator

import pytest

from lukshook.errors import Refused, Unavailable
from lukshook.luks import header
from lukshook.luks.header import Copy, Header
from support import header_forgery

Bytes = bytes | bytearray

#: A check takes milliseconds; a hook that starts often must not feel it, on a slow machine either.
MOST_SECONDS = 1.0


@contextlib.contextmanager
def stored(image: Bytes) -> Iterator[int]:
    """A descriptor of *image*."""
    fd = os.memfd_create("image")
    try:
        os.write(fd, image)
        yield fd
    finally:
        os.close(fd)


def judged(image: Bytes) -> Header:
    """What is found in *image*."""
    with stored(image) as fd:
        return header.judge(header.copy(fd), len(image))


def copied(image: Bytes) -> Copy:
    """The header of *image*."""
    with stored(image) as fd:
        return header.copy(fd)


def forged(image: bytearray, change: header_forgery.Change) -> bytearray:
    """A copy of *image*, forged."""
    changed = copying.copy(image)
    change(changed)
    return changed


def test_all_of_a_header_is_asked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata and one key slot: behind a slow line each wait counts. Afterwards all is as it was."""
    asked: list[tuple[int, int, int]] = []
    read: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, at, length, advice: asked.append((at, length, advice)))
    pread = os.pread

    def noting(fd: int, length: int, at: int) -> bytes:
        assert os.POSIX_FADV_NORMAL not in [advice for _, _, advice in asked]
        read.append(at + length)
        return pread(fd, length, at)

    monkeypatch.setattr(os, "pread", noting)
    copied(header_forgery.luks1())

    ahead = [(at, length) for at, length, advice in asked if advice == os.POSIX_FADV_WILLNEED]
    ends = [at + length for at, length in ahead]
    assert [0, *ends[:-1]] == [at for at, _ in ahead]
    assert max(read[:2]) <= ends[-1]
    assert (os.POSIX_FADV_RANDOM, os.POSIX_FADV_NORMAL) == (asked[0][2], asked[-1][2])


CORPUS = [
    *(pytest.param(header_forgery.luks2(), forgery, id=f"luks2 {forgery.name}") for forgery in header_forgery.LUKS2),
    *(pytest.param(header_forgery.luks1(), forgery, id=f"luks1 {forgery.name}") for forgery in header_forgery.LUKS1),
]


@pytest.mark.parametrize(("image", "forgery"), CORPUS)
def test_forgery_is_refused(image: bytearray, forgery: header_forgery.Forgery) -> None:
    """A forged header is refused for the thing that was forged, quickly, and shows nothing of it raw."""
    pinned = header.pins(judged(image))
    changed = forged(image, forgery.change)
    begin = time.perf_counter()
    with pytest.raises(Refused) as caught:
        found = judged(changed)
        assert forgery.pinned
        header.compare(pinned, found)
    assert time.perf_counter() - begin < MOST_SECONDS
    assert forgery.says in caught.value.message
    assert caught.value.message.isprintable()
    assert caught.value.hint


@pytest.mark.parametrize("image", [header_forgery.luks2(), header_forgery.luks1()], ids=["luks2", "luks1"])
def test_genuine_is_taken_and_is_what_it_was(image: bytearray) -> None:
    """A genuine header is taken, and is the same as its own pins that went through JSON."""
    found = judged(image)
    header.compare(json.loads(json.dumps(header.pins(found))), found)
    assert header_forgery.UUID == found.uuid
    assert [0, 1] == [slot.number for slot in found.slots]


def test_luks2_fields() -> None:
    """What a LUKS2 header says is found where it says it."""
    found = judged(header_forgery.luks2())
    assert ("luks2", "aes-xts-plain64", 64, 4096, header_forgery.OFFSET, 2) == (
        found.type,
        found.cipher,
        found.key_bytes,
        found.sector_size,
        found.offset,
        found.copies,
    )
    assert (
        "pbkdf2",
        "sha512",
        1000,
        header_forgery.noise(32, "s1").hex(),
        2 * header_forgery.METADATA + header_forgery.AREA,
    ) == (
        found.slots[1].kdf,
        found.slots[1].hash,
        found.slots[1].time,
        found.slots[1].salt,
        found.slots[1].area_offset,
    )


@pytest.mark.parametrize(
    "change",
    [
        header_forgery.put("keyslots.1.kdf", header_forgery.argon2()),
        header_forgery.put("keyslots.1.kdf", header_forgery.argon2(type="argon2i", memory=32, time=60000, cpus=1)),
        header_forgery.put("keyslots.1.priority", 0),
        header_forgery.put("config.flags", []),
        header_forgery.put("digests.0.digest", header_forgery.slot(0, 0)["kdf"]["salt"][:26] + "Q="),
        header_forgery.rewrite(lambda text: text.replace(b"/", b"\\/")),
        header_forgery.binary(24, b"backup of the office"),
        header_forgery.put("tokens.5", {"type": "lukshook", "keyslots": [], "macs": {"0" * 16: "0" * 64}}),
    ],
    ids=[
        "argon2id",
        "argon2i",
        "priority",
        "no flags",
        "digest of 20 bytes",
        "slashes",
        "label",
        "our token",
    ],
)
def test_what_cryptsetup_may_write_is_taken(change: header_forgery.Change) -> None:
    """What differs between versions and choices of cryptsetup, and harms nobody, is taken."""
    assert header_forgery.UUID == judged(forged(header_forgery.luks2(), change)).uuid


@pytest.mark.parametrize(
    ("by", "sector_size", "used"),
    [(-1, 4096, header_forgery.METADATA), (1, 512, 0)],
    ids=["first older", "first newer"],
)
def test_power_cut_between_the_copies(by: int, sector_size: int, used: int) -> None:
    """With copies one change apart the newer one counts, and only that one is opened."""
    new = forged(
        header_forgery.luks2(),
        header_forgery.both(header_forgery.put("segments.0.sector_size", 512, (0,)), header_forgery.step(by)),
    )
    assert (sector_size, 1) == (judged(new).sector_size, judged(new).copies)
    assert [used] == [offset for offset, _ in copied(new).extents if offset < 2 * header_forgery.METADATA]


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("at", [0, 8, 448, 5000])
def test_power_cut_in_a_copy(copy: int, at: int) -> None:
    """With one copy damaged the other is taken, and is the same volume."""
    image = header_forgery.luks2()
    pinned = header.pins(judged(image))
    broken = forged(image, header_forgery.raw(copy * header_forgery.METADATA + at, b"\xff" * 16))
    header.compare(pinned, judged(broken))
    assert 1 == judged(broken).copies
    assert not copied(broken).read(copy * header_forgery.METADATA, header_forgery.METADATA)


def test_copy_is_read_once() -> None:
    """What is changed in the image after the copy was made is not in it."""
    image = header_forgery.luks2()
    with stored(image) as fd:
        kept = header.copy(fd)
        os.pwrite(fd, forged(image, header_forgery.put("segments.0.encryption", "cipher_null-ecb")), 0)
        assert judged(image) == header.judge(kept, len(image))


def test_memfd_is_the_copy_and_nothing_else() -> None:
    """The file in memory has the copy's bytes at their places, zeroes between, and cannot be written."""
    image = forged(header_forgery.luks2(), header_forgery.raw(header_forgery.OFFSET - 4096, b"\xff" * 4096))
    kept = copied(image)
    fd = kept.memfd()
    try:
        data = os.pread(fd, header_forgery.IMAGE_SIZE, 0)
        assert header_forgery.OFFSET == len(data)
        assert all(part == data[offset : offset + len(part)] for offset, part in kept.extents)
        assert sum(len(part.strip(b"\0")) for _, part in kept.extents) >= 2 * header_forgery.MATERIAL - 100
        assert bytes(4096) == data[-4096:]
        assert kept == copied(data)
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        assert fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL == seals & (fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_copy_without_its_material_is_refused() -> None:
    """A copy that lacks a key slot, or ends elsewhere than it says, is not judged fit."""
    kept = copied(header_forgery.luks2())
    with pytest.raises(Refused, match="key slot 1 is not in this copy"):
        header.judge(Copy(kept.size, kept.extents[:-1]), header_forgery.IMAGE_SIZE)
    with pytest.raises(Refused, match="where this copy of it ends"):
        header.judge(Copy(kept.size + 4096, kept.extents), header_forgery.IMAGE_SIZE)


def test_store_that_fails_is_not_a_forgery() -> None:
    """An error of the store while reading is told apart from a bad header."""
    reader, writer = os.pipe()
    try:
        with pytest.raises(Unavailable, match="cannot be read"):
            header.copy(reader)
    finally:
        os.close(reader)
        os.close(writer)


def test_pins_of_another_kind_are_refused() -> None:
    """Pins that lack everything, as a damaged state file may, never pass."""
    with pytest.raises(Refused, match="type was None"):
        header.compare({}, judged(header_forgery.luks2()))
    with pytest.raises(Refused, match="key slot 0 of the header is new"):
        found = judged(header_forgery.luks2())
        header.compare({**header.pins(found), "slots": None}, found)


def test_corpus_is_large() -> None:
    """The corpus has at least the 60 headers that were promised, each under a name of its own."""
    names = [param.id for param in CORPUS]
    assert len(set(names)) == len(names)
    assert len(names) >= 60
