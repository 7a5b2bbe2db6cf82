"""An image of some pieces that lukshook's functions keep a ledger of, without any layer that opens it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from lukshook.layers.image import handle_of
from lukshook.ledger.pieces import PIECE
from lukshook.proof import copy, heal
from lukshook.proof.copy import Asked, Copied
from lukshook.proof.heal import Healed
from lukshook.proof.verify_copy import VerifiedCopy, verify_copy
from lukshook.store.image_file import open_image
from lukshook.system.secret import Secret
from lukshook.volume import ledger_keeping
from lukshook.volume.known_state import Known
from lukshook.volume.work import work_on
from support.direct_volume import DirectVolume, parsed, site_in

UUID = "0f8a2d0c-3f0e-4c58-9a3c-3c5f7d1f2b11"
#: Of a header without key slots.
_PINS = {
    "type": "luks2",
    "uuid": UUID,
    "cipher": "aes-xts-plain64",
    "key_bytes": 64,
    "sector_size": 4096,
    "offset": 0,
    "digest": {"hash": "sha256", "iterations": 1, "salt": "", "value": ""},
    "slots": {},
}


def _nothing(done: int, total: int) -> None:
    """Nobody looks."""


@frozen
class KeptVolume(DirectVolume):
    """Its every fourth piece is a hole, and the last is short. *place*: of its copy, if it is not on the disk.

    *url*: of its copy, if it is at a remote place.
    """

    place: Path | None = None
    url: str = ""

    @property
    def where(self) -> str:
        """What a user calls the copy."""
        return self.url or str(self.target)

    @property
    def target(self) -> Path:
        return self.place or self.folder / "disk/copy.img"

    def copy(self, asked: Asked = Asked()) -> Copied:  # noqa: B008 - frozen
        done = copy.copy(self.volume, self.site, self.where, asked, _nothing)
        assert done is not None
        return done

    def verify_copy(self) -> VerifiedCopy:
        return verify_copy(self.volume, self.site, self.where, _nothing)

    def forget(self) -> None:
        copy.forget(self.volume, self.site, self.where)

    def heal(self, *, partly: bool = False) -> Healed:
        return heal.heal(self.volume, self.site, self.where, _nothing, partly=partly)

    @contextmanager
    def open(self) -> Iterator[Path]:
        """As between opening and closing, without a layer that records writes."""
        with open_image(self.image, writable=True) as image, work_on(self.volume, self.site) as work:
            ledger_keeping.begin(work, image)
            yield self.image
            ledger_keeping.finish(work, handle_of(image), None)

    def write(self, chance: random.Random, *, most: int = 4) -> None:
        """A backup that changes some pieces, holes too."""
        with self.open() as path, path.open("r+b") as file:
            size = path.stat().st_size
            for _ in range(chance.randrange(1, most + 1)):
                file.seek(chance.randrange(len(self.header), size))
                file.write(chance.randbytes(chance.randrange(1, 5000))[: size - file.tell()])

    @property
    def header(self) -> bytes:
        """What stands at the beginning: as much of a LUKS header as `copy` looks at."""
        return b"LUKS\xba\xbe".ljust(168, b"\0") + UUID.encode().ljust(40, b"\0")

    def names(self) -> list[str]:
        """What lies at the target."""
        return sorted(entry.name for entry in self.target.parent.iterdir())


def kept_volume(folder: Path, warn: Callable[[str], None], *, pieces: int = 16, **options: object) -> KeptVolume:
    """A new one in *folder*; *options* go into the configuration."""
    chance = random.Random(0)
    (folder / "disk").mkdir(parents=True)
    site = site_in(folder, lambda volume: Secret(b""), warn)
    kept = KeptVolume(folder, parsed(folder, ledger=True, **options), site)
    with kept.image.open("wb") as out:
        out.write(kept.header)
        for number in range(pieces):
            if number % 4 != 3:
                out.seek(number * PIECE + (len(kept.header) if number == 0 else 0))
                out.write(chance.randbytes(PIECE - (len(kept.header) if number == 0 else 0)))
        out.truncate((pieces - 1) * PIECE + 12_345)
    site.state(kept.volume).make_folder()
    with open_image(kept.image, writable=True) as image, work_on(kept.volume, site) as work:
        work.state.save(Known(pins=_PINS))
        ledger_keeping.start(work, image)
    return kept
