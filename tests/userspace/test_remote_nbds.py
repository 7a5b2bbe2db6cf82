"""An image behind an NBD server with TLS: both ends are real, and so is the check of the server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.far_host import free_port, nbd_server
from support.far_volume import back_up, house, in_it, nothing_stands
from support.tls_material import certificates, shared_keys
from support.volume import NAME, CliVolume, closing

pytestmark = [
    pytest.mark.roots,
    pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "fuse2fs", "mkfs.ext4", "socat", "nbdfuse"),
    pytest.mark.needs("nbdkit", "certtool"),
]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    image = tmp_path / "export"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    return image


@contextmanager
def volume_at(folder: Path, url: str, **options: object) -> Iterator[CliVolume]:
    volume = house(folder, url, **options)
    yield from closing(volume)


def test_the_life_of_a_volume_with_certificates(tmp_path: Path, port: int, image: Path) -> None:
    """Both sides show theirs; what is written comes back."""
    given = certificates(tmp_path / "tls")
    options = ("--tls=require", f"--tls-certificates={given}", "--tls-verify-peer", "file", str(image))
    at = volume_at(tmp_path / "house", f"nbds://127.0.0.1:{port}/", tls_certificates=str(given))
    with nbd_server(port, *options), at as volume:
        volume.do("create", NAME)
        content = back_up(volume, "file")
        assert [content] == in_it(volume, "file")
        assert nothing_stands(volume)
        assert "which has no locks" in volume.do("check", NAME)


def test_a_pre_shared_key(tmp_path: Path, port: int, image: Path) -> None:
    """The user in the URL names it; another key is refused, and one that others can read is not used at all."""
    keys = shared_keys(tmp_path / "keys.psk", "me", "you")
    url = f"nbds://me@127.0.0.1:{port}/"
    options = ("--tls=require", f"--tls-psk={keys}", "file", str(image))
    with nbd_server(port, *options), volume_at(tmp_path / "house", url, tls_psk=str(keys)) as volume:
        volume.do("create", NAME)
        assert nothing_stands(volume)
        wrong = shared_keys(tmp_path / "wrong.psk", "me")
        volume.configure(image=url, tls_psk=str(wrong))
        assert "gave no export" in volume.refusal(69, "before-backup", NAME)
        keys.chmod(0o644)
        volume.configure(image=url, tls_psk=str(keys))
        assert "others may read the key file" in volume.refusal(77, "before-backup", NAME)
        assert nothing_stands(volume)


def test_a_server_that_cannot_be_verified_is_refused(tmp_path: Path, port: int, image: Path) -> None:
    """Another authority's, another name's, and one without TLS: before anything is sent to it. So is having nothing to
    verify it by."""
    given, other = certificates(tmp_path / "tls"), certificates(tmp_path / "other")
    url, refused = f"nbds://127.0.0.1:{port}/", "certificate verification"
    before = image.read_bytes()
    with volume_at(tmp_path / "house", url, tls_certificates=str(other)) as volume:
        with nbd_server(port, "--tls=require", f"--tls-certificates={given}", "file", str(image)):
            assert refused in volume.refusal(69, "create", NAME)
            volume.configure(image=f"nbds://localhost:{port}/", tls_certificates=str(given))
            assert refused in volume.refusal(69, "create", NAME)
            volume.configure(image=url, tls_certificates=str(tmp_path))
            assert "ca-cert.pem is not there" in volume.refusal(69, "create", NAME)
            (tmp_path / "ca-cert.pem").write_text("none")
            assert refused in volume.refusal(69, "create", NAME)
        with nbd_server(port, "--tls=off", "file", str(image)):
            volume.configure(image=url, tls_certificates=str(given))
            assert "gave no export" in volume.refusal(69, "create", NAME)
        assert nothing_stands(volume)
    assert before == image.read_bytes()
