"""Headers that the real cryptsetup makes, opens and mends, against what the allow-list says of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lukshook.errors import Refused
from lukshook.luks import header
from lukshook.luks.header import Copy, Header
from lukshook.system.secret import Secret
from support import header_forgery

pytestmark = [
    pytest.mark.files,
    pytest.mark.skipif(not shutil.which("cryptsetup"), reason="cryptsetup is not installed"),
]

KEY, OTHER = Secret(header_forgery.noise(32, "key")), Secret(header_forgery.noise(32, "other"))
FAST = ("--pbkdf", "pbkdf2", "--hash", "sha512", "--pbkdf-force-iterations", "1000")
ARGON2 = ("--pbkdf-force-iterations", "4", "--pbkdf-memory", "1024", "--pbkdf-parallel", "1")
SMALL = ("--luks2-metadata-size", "16k", "--luks2-keyslots-size", "512k")
MIB = 1024 * 1024

GENUINE = {
    "today's default header": ("luks2", FAST),
    "the header of 2.0 (4 MiB)": ("luks2", (*FAST, "--luks2-keyslots-size", str(4 * MIB - 32768))),
    "the smallest header": ("luks2", (*FAST, *SMALL)),
    "the largest metadata": ("luks2", (*FAST, "--luks2-metadata-size", "4m")),
    "data moved back": ("luks2", (*FAST, "--offset", "65536")),
    "sectors of 512": ("luks2", (*FAST, "--sector-size", "512")),
    "sectors of 4096": ("luks2", (*FAST, "--sector-size", "4096")),
    "AES-128": ("luks2", (*FAST, "--key-size", "256")),
    "AES-256": ("luks2", (*FAST, "--key-size", "512")),
    "a label": ("luks2", (*FAST, "--label", "office", "--subsystem", "backup")),
    "argon2id": ("luks2", ("--pbkdf", "argon2id", *ARGON2)),
    "argon2i, the default of 2.0": ("luks2", ("--pbkdf", "argon2i", *ARGON2)),
    "LUKS1": ("luks1", ("--pbkdf-force-iterations", "1000")),
    "LUKS1 with sha1, the default before 1.7": ("luks1", ("--pbkdf-force-iterations", "1000", "--hash", "sha1")),
    "LUKS1 with AES-128": ("luks1", ("--pbkdf-force-iterations", "1000", "--key-size", "256")),
    "LUKS1 without alignment": ("luks1", ("--pbkdf-force-iterations", "1000", "--align-payload", "8")),
}


def cryptsetup(
    *arguments: str, key: Secret | None = KEY, pass_fds: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[bytes]:
    """Run cryptsetup with *key* on its standard input."""
    given = bytes(key.reveal()) if key else b""
    return subprocess.run(
        ["cryptsetup", "-q", *arguments], input=given, capture_output=True, timeout=60, pass_fds=pass_fds, check=False
    )


def make(path: Path, kind: str, options: tuple[str, ...], size: int = 48 * MIB) -> Path:
    """A new volume in the file *path*."""
    path.touch()
    os.truncate(path, size)
    done = cryptsetup("luksFormat", "--type", kind, "--key-file", "-", *options, str(path))
    assert done.returncode == 0, done.stderr
    return path


def copied(path: Path) -> Copy:
    """The header of the image *path*."""
    with path.open("rb") as image:
        return header.copy(image.fileno())


def judged(path: Path) -> Header:
    """What the header of the image *path* says."""
    return header.judge(copied(path), path.stat().st_size)


def opens(copy: Copy, path: Path, kind: str = "luks2", key: Secret = KEY) -> bool:
    """Whether cryptsetup finds the volume key of *path* with *copy* as its header."""
    fd = copy.memfd()
    try:
        arguments = ("open", "--test-passphrase", "--type", kind, "--key-file", "-", "--header", f"/proc/self/fd/{fd}")
        return cryptsetup(*arguments, str(path), key=key, pass_fds=(fd,)).returncode == 0
    finally:
        os.close(fd)


@pytest.fixture(name="image")
def _image(tmp_path: Path) -> Iterator[Path]:
    path = make(tmp_path / "image", "luks2", (*FAST, *SMALL), 2 * MIB)
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.parametrize(("kind", "options"), GENUINE.values(), ids=GENUINE.keys())
def test_genuine_header_is_taken_and_its_copy_opens(tmp_path: Path, kind: str, options: tuple[str, ...]) -> None:
    """What cryptsetup makes is taken, is what cryptsetup says it is, and opens from the file in memory."""
    path = make(tmp_path / "image", kind, options)
    found = judged(path)
    said = cryptsetup("luksUUID", str(path)).stdout.decode().strip()
    assert (kind, said, [0]) == (found.type, found.uuid, [slot.number for slot in found.slots])
    header.compare(json.loads(json.dumps(header.pins(found))), found)
    assert opens(copied(path), path, kind)
    assert not opens(copied(path), path, kind, OTHER)
    path.unlink()


@pytest.mark.slow
def test_costs_that_cryptsetup_picks_itself(tmp_path: Path) -> None:
    """The costs that cryptsetup measures on this machine are within bounds, for both formats."""
    for kind, options in (("luks2", ()), ("luks2", ("--pbkdf", "pbkdf2")), ("luks1", ())):
        path = make(tmp_path / "image", kind, options)
        assert kind == judged(path).type
        path.unlink()


def test_converted_header_is_taken(tmp_path: Path) -> None:
    """A LUKS1 volume that was converted to LUKS2 is taken."""
    path = make(tmp_path / "image", "luks1", ("--pbkdf-force-iterations", "1000"))
    assert cryptsetup("convert", "--type", "luks2", str(path)).returncode == 0
    assert "luks2" == judged(path).type
    assert opens(copied(path), path)


def test_key_slots_come_and_go(tmp_path: Path, image: Path) -> None:
    """A key slot that is added or removed is seen by the pins, and the header stays one that is taken."""
    before = header.pins(judged(image))
    new = tmp_path / "new"
    new.write_bytes(bytes(OTHER.reveal()))
    assert cryptsetup("luksAddKey", "--key-file", "-", *FAST, str(image), str(new)).returncode == 0
    with pytest.raises(Refused, match="key slot 1 of the header is new"):
        header.compare(before, judged(image))
    between = header.pins(judged(image))
    assert opens(copied(image), image, key=OTHER)
    assert cryptsetup("luksKillSlot", "--key-file", "-", str(image), "0", key=OTHER).returncode == 0
    with pytest.raises(Refused, match="key slot 0 of the header is gone"):
        header.compare(between, judged(image))
    assert not opens(copied(image), image)


def test_token_makes_the_round_trip(image: Path) -> None:
    """The token goes into the header and comes back, as often as it is replaced; the pins do not mind."""
    before = judged(image)
    token = header.token({header.key_id(KEY): header.mac(before, 0, KEY)})
    imported = cryptsetup("token", "import", "--json-file", "-", str(image), key=Secret(token.encode()))
    assert imported.returncode == 0, imported.stderr
    found = judged(image)
    header.compare(header.pins(before), found)
    assert True is header.verify_mac(found, KEY)
    assert header.verify_mac(found, OTHER) is None
    again = header.token({**header.find_macs(found), header.key_id(OTHER): "0" * 64})
    replace = ("token", "import", "--token-replace", "--token-id", str(found.tokens[0].number), "--json-file", "-")
    assert cryptsetup(*replace, str(image), key=Secret(again.encode())).returncode == 0
    assert True is header.verify_mac(judged(image), KEY)
    assert False is header.verify_mac(judged(image), OTHER)
    assert opens(copied(image), image)


@pytest.mark.parametrize("copy", [0, 1])
def test_power_cut_in_a_copy_still_opens(image: Path, copy: int) -> None:
    """With one copy damaged the volume opens from the other, as it does with cryptsetup alone; then it is mended."""
    pinned = header.pins(judged(image))
    data = bytearray(image.read_bytes())
    header_forgery.raw(copy * header_forgery.METADATA + 448, b"\xff" * 32)(data)
    image.write_bytes(data)
    header.compare(pinned, judged(image))
    assert 1 == judged(image).copies
    assert opens(copied(image), image)
    assert cryptsetup("luksDump", str(image)).returncode == 0
    assert 2 == judged(image).copies


def test_power_cut_between_the_copies_still_opens(tmp_path: Path, image: Path) -> None:
    """With the new first copy beside the old second one, the new key slot counts, as with cryptsetup alone."""
    old = image.read_bytes()
    new = tmp_path / "new"
    new.write_bytes(bytes(OTHER.reveal()))
    assert cryptsetup("luksAddKey", "--key-file", "-", *FAST, str(image), str(new)).returncode == 0
    data = bytearray(image.read_bytes())
    data[header_forgery.METADATA : 2 * header_forgery.METADATA] = old[
        header_forgery.METADATA : 2 * header_forgery.METADATA
    ]
    image.write_bytes(data)
    assert (1, [0, 1]) == (judged(image).copies, [slot.number for slot in judged(image).slots])
    assert opens(copied(image), image, key=OTHER)


def test_exchange_after_the_check_changes_nothing(image: Path) -> None:
    """What the store puts into the image after the copy was judged is not what is opened."""
    kept = copied(image)
    data = bytearray(image.read_bytes())
    header_forgery.put("segments.0.encryption", "cipher_null-ecb")(data)
    data[2 * header_forgery.METADATA : MIB] = bytes(MIB - 2 * header_forgery.METADATA)
    image.write_bytes(data)
    assert opens(kept, image)


def test_cryptsetup_alone_takes_a_null_cipher(image: Path) -> None:
    """The reason for all this: with a null data cipher the right key opens, unless the header is judged."""
    data = bytearray(image.read_bytes())
    header_forgery.put("segments.0.encryption", "cipher_null-ecb")(data)
    image.write_bytes(data)
    assert cryptsetup("open", "--test-passphrase", "--type", "luks2", "--key-file", "-", str(image)).returncode == 0
    with pytest.raises(Refused, match="in the clear"):
        judged(image)


@pytest.fixture(name="real", scope="module")
def _real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """An image of each format, made by cryptsetup, with two key slots."""
    folder = tmp_path_factory.mktemp("real")
    new = folder / "new"
    new.write_bytes(bytes(OTHER.reveal()))
    images = {}
    for kind, options, more, size in (("luks2", FAST, SMALL, 2 * MIB), ("luks1", FAST[-2:], (), 4 * MIB)):
        path = make(folder / kind, kind, (*options, *more), size)
        assert cryptsetup("luksAddKey", "--key-file", "-", *options, str(path), str(new)).returncode == 0
        images[kind] = path.read_bytes()
    return images


@pytest.mark.parametrize(
    ("kind", "forgery"),
    [
        *(pytest.param("luks2", forgery, id=f"luks2 {forgery.name}") for forgery in header_forgery.LUKS2),
        *(pytest.param("luks1", forgery, id=f"luks1 {forgery.name}") for forgery in header_forgery.LUKS1),
    ],
)
def test_forgery_of_a_real_header_is_refused(
    tmp_path: Path, real: dict[str, bytes], kind: str, forgery: header_forgery.Forgery
) -> None:
    """The corpus, made of headers that cryptsetup wrote, is refused as well."""
    path = tmp_path / "image"
    path.write_bytes(real[kind])
    pinned = header.pins(judged(path))
    data = bytearray(real[kind])
    forgery.change(data)
    path.write_bytes(data)
    with pytest.raises(Refused) as caught:
        header.compare(pinned, judged(path))
    assert forgery.says in caught.value.message
    path.unlink()
