"""A volume that is nothing but a header in a sparse file, with its keys in files: what key tests work on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from attrs import frozen

from lukshook.config import Volume
from lukshook.keys import key_sources
from lukshook.layers.base import Trust
from lukshook.luks import cryptsetup as luks
from lukshook.luks import header, header_file
from lukshook.store.image_file import open_image
from lukshook.system.secret import KEY_BYTES, Secret
from lukshook.volume import header_change, known_state
from lukshook.volume.header_change import Seen
from lukshook.volume.judgement import Accepting
from support.direct_volume import DirectVolume, parsed, site_in

MIB = 1024 * 1024


@frozen
class KeyVolume(DirectVolume):
    """A volume whose keys lie in files beside it, each under a name."""

    def source(self, name: str) -> str:
        """The key source of that name; `own` is the volume's."""
        return f"file:{self.folder / name}.key"

    def new_key(self, name: str) -> Secret:
        """A new key in the source of that name."""
        key = Secret(os.urandom(KEY_BYTES))
        source, argument = key_sources.parse(self.source(name))
        assert source.store is not None
        source.store(argument, key.text().reveal().decode())
        return key

    def key(self, name: str) -> Secret:
        """What the source of that name holds now."""
        return key_sources.obtain([self.source(name)], self.asking())

    def asking(self) -> key_sources.Asking:
        return key_sources.Asking(os.environ, self.volume.name, self.site.warn)

    def backup(self) -> Path:
        return known_state.KnownState(self.site.state_folder, self.volume.name).header_backup

    def pins(self) -> dict[str, object]:
        """The pins of the header that lies on the image now."""
        return header.pins(luks.read_header(self.image))


def look(image: Path, trust: Trust) -> Seen:
    """The header of the image at that path, judged."""
    with open_image(image, writable=False) as there:
        return header_change.look(there, trust)


def empty(folder: Path) -> KeyVolume:
    """A configured volume of which nothing is there yet."""
    volume = parsed(folder, size=None, fill=None)
    return KeyVolume(folder, volume, site_in(folder, ask, warnings_are_errors))


def build(folder: Path, kind: str = "luks2") -> KeyVolume:
    """A new volume of the kind, known to this host, marked and backed up like one that `create` made."""
    house = empty(folder)
    volume, site = house.volume, house.site
    key = house.new_key("own")
    with house.image.open("xb") as file:
        file.truncate(24 * MIB)
    site.runner.run(luks.format_command(house.image, kind, key, ""))
    if kind == "luks1":
        luks.add_key(house.image, key, key.text(), site.runner)
    luks.mark(house.image, key, site.runner)
    accepting = Accepting(volume.name, known_state.Known())
    look(house.image, accepting)
    known_state.KnownState(site.state_folder, volume.name).save(accepting.known)
    header_file.write(look(house.image, accepting).copy, house.backup())
    return house


def ask(volume: Volume) -> Secret:
    return key_sources.obtain(volume.key, key_sources.Asking(os.environ, volume.name, warnings_are_errors))


def warnings_are_errors(message: str) -> None:
    raise AssertionError(message)


def opens(file: Path, secret: Secret) -> bool:
    """Whether cryptsetup, asked without lukshook, opens the image or header in *file* with the bytes of *secret*."""
    argv = ["cryptsetup", "open", "--test-passphrase", "--key-file=-", f"--keyfile-size={len(secret)}", str(file)]
    return (
        subprocess.run(argv, input=bytes(secret.reveal()), capture_output=True, timeout=60, check=False).returncode == 0
    )


def cryptsetup(*argv: str, given: bytes = b"") -> None:
    """Run cryptsetup behind lukshook's back."""
    subprocess.run(["cryptsetup", "--batch-mode", *argv], input=given, capture_output=True, timeout=60, check=True)


def configure(house: KeyVolume) -> None:
    """Two volumes for the command line: the house's, and one that nothing is there of."""
    at = house.folder
    tables = (
        f'[volumes.{name}]\nimage = "{at}/{image}"\nmountpoint = "{at}/{name}-mnt"\n'
        f'key = "file:{at}/{key}.key"\nengine = "kernel"\n'
        for name, image, key in (("house", "image", "own"), ("fresh", "fresh", "fresh"))
    )
    (at / "config.toml").write_text("".join(tables))


def lukshook(house: KeyVolume, *words: str, stdout: int = subprocess.PIPE) -> tuple[int, str, str]:
    """Exit status, standard output ("" if *stdout* is another descriptor) and standard error of a command."""
    environment = {
        **os.environ,
        "LUKSHOOK_CONFIG": str(house.folder / "config.toml"),
        "LUKSHOOK_RUN_DIR": str(house.site.run_folder),
        "LUKSHOOK_STATE_DIR": str(house.site.state_folder),
    }
    argv = [sys.executable, "-m", "lukshook", *words]
    done = subprocess.run(
        argv, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, timeout=60, check=False
    )
    quiet = [line for line in done.stderr.splitlines(keepends=True) if not line.startswith("warning: swap")]
    return done.returncode, done.stdout or "", "".join(quiet)
