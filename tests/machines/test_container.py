"""The example container: what it may do is enough for a backup and a restore, and nothing of it is too much."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

from lukshook.system.secret import KEY_BYTES, Secret
from support import containers
from support import debian_roots as roots

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("mmdebstrap", "unshare", "setpriv", "pivot_root"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a root folder is built and entered by root"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="there is no /dev/fuse"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="there are no loop devices"),
]
RUN = "lukshook run offsite -- "
BORGMATIC = "borgmatic --config /etc/lukshook/borgmatic.yaml"
RESTIC = "env RESTIC_PASSWORD_FILE=/run/secrets/offsite RESTIC_CACHE_DIR=/tmp restic -q -r /mnt/backupspace/data/restic"
TOOLS = {
    "rsync": (
        "rsync -aHAX /source /mnt/backupspace/data/rsync/",
        "rsync -aHAX /mnt/backupspace/data/rsync/source /restored/",
    ),
    "borgmatic": (
        f"sh -c '{BORGMATIC} repo-create -e none && {BORGMATIC} create prune compact check'",
        f"sh -c 'cd /restored && {BORGMATIC} extract --archive latest --destination /restored'",
    ),
    "restic": (
        f"sh -c '{RESTIC} init && {RESTIC} backup /source'",
        f"{RESTIC} restore latest --target /restored",
    ),
}


@frozen
class Container:
    """The image's root, and the folder of the volumes."""

    root: Path
    volumes: Path

    def run(self, command: str, without: str = "", seconds: float = 300.0) -> subprocess.CompletedProcess[str]:
        return containers.run(self.root, self.volumes, command, without=without, seconds=seconds)

    def does(self, command: str) -> str:
        """What a command says that has to succeed."""
        done = self.run(command)
        assert 0 == done.returncode, f"{command}\n{done.stdout[-3000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    folder = tmp_path_factory.mktemp("container")
    try:
        root = containers.build(folder)
    except roots.CannotBuild as error:
        pytest.fail(f"the image could not be built: {error}", pytrace=False)
    yield Container(root, folder / "volumes")
    subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


@pytest.fixture
def fresh(container: Container) -> Container:
    """With files of two users to back up, a key as Docker mounts it, and no image."""
    shutil.rmtree(container.volumes, ignore_errors=True)
    for name in ("store", "restored", "state", "etc", "source/alice"):
        (container.volumes / name).mkdir(parents=True)
    config = (containers.EXAMPLE / "config.toml").read_text()
    (container.volumes / "etc/config.toml").write_text(re.sub('size = ".*"', 'size = "128MiB"', config))
    shutil.copy(containers.EXAMPLE / "borgmatic.yaml", container.volumes / "etc")
    (container.volumes / "key").write_bytes(bytes(Secret(os.urandom(KEY_BYTES)).text().reveal()))
    (container.volumes / "key").chmod(0o444)
    letter = container.volumes / "source/alice/letter"
    letter.write_text("hello\n")
    for place in (letter.parent, letter):
        os.chown(place, 1000, 1000)
    letter.parent.chmod(0o700)
    letter.chmod(0o2750)
    return container


def facts(folder: Path) -> dict[str, tuple[object, ...]]:
    """Owner, mode, time and content of everything in a folder."""
    return {
        str(path.relative_to(folder)): (
            *(found.st_uid, found.st_gid, found.st_mode, int(found.st_mtime)),
            path.read_bytes() if path.is_file() else b"",
        )
        for path in (folder, *folder.rglob("*"))
        if (found := path.lstat())
    }


def test_each_tool_backs_up_and_restores(fresh: Container) -> None:
    """Each command in a container of its own, which leaves nothing but what is in the volumes."""
    fresh.does("lukshook create offsite")
    for backup, restore in TOOLS.values():
        fresh.does(RUN + backup)
        fresh.does(RUN + restore)
        assert facts(fresh.volumes / "source") == facts(fresh.volumes / "restored/source")
        shutil.rmtree(fresh.volumes / "restored/source")

    assert "fail " not in fresh.does("lukshook check offsite")


def test_a_stopped_container_closes_the_volume(fresh: Container) -> None:
    """SIGTERM to process 1, as `docker stop` does it."""
    fresh.does("lukshook create offsite")
    stopped = fresh.run(f"{RUN}sleep 600", seconds=15.0)

    assert 128 + signal.SIGTERM == stopped.returncode, stopped.stdout
    assert "warning" not in fresh.does(f"{RUN}true")


@pytest.mark.parametrize("name", [*containers.devices(), "SYS_ADMIN", "MKNOD"])
def test_nothing_opens_without(fresh: Container, name: str) -> None:
    """Each device, and the capabilities that opening needs."""
    done = fresh.run("lukshook create offsite", without=name)

    assert done.returncode != 0, done.stdout
    assert not (fresh.volumes / "store/backup.img").exists()


def test_a_backup_needs_the_other_capabilities(fresh: Container) -> None:
    """Without one of them, rsync fails, or the copy is not as the file was."""
    others = [name for name in containers.capabilities() if name not in ("SYS_ADMIN", "MKNOD")]
    fresh.does("lukshook create offsite")

    for name in others:
        lost = fresh.run(f"{RUN}rsync -aHAX /source /mnt/backupspace/data/{name}/", without=name)
        differs = fresh.does(f"{RUN}rsync -aHAXn --itemize-changes /source /mnt/backupspace/data/{name}/")
        assert lost.returncode or differs, f"rsync needs no {name}"
