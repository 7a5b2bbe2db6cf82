"""Images at remote places, without one: URLs, what is run for them, and what a server may answer."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from attrs import evolve

from lukshook import config
from lukshook.config import Volume
from lukshook.errors import BadConfiguration, Denied, LukshookError, Refused, Unavailable, Usage
from lukshook.store.remote import export, kinds, mark
from lukshook.store.remote import ssh as ssh_store
from lukshook.store.remote.export import Export
from lukshook.store.remote.kind import OWN_WORDS, Abilities, Locked
from lukshook.store.remote.login import Login
from lukshook.store.remote.nbd import Nbd
from lukshook.store.remote.sftp import SftpStore
from lukshook.store.remote.ssh import Ssh
from lukshook.system import files, kernel
from lukshook.system.command import Command, Result
from lukshook.volume import rekey
from support.fake_runner import FakeRunner


def ssh(url: str) -> Ssh:
    found = kinds.parse(url)
    assert isinstance(found, Ssh)
    return found


def nbd(url: str) -> Nbd:
    found = kinds.parse(url)
    assert isinstance(found, Nbd)
    return found


@pytest.mark.parametrize(
    ("url", "user", "host", "port", "path"),
    [
        ("ssh://host/srv/b.img", "", "host", 0, "/srv/b.img"),
        ("ssh://me@host:23/~/b.img", "me", "host", 23, "./b.img"),
        ("ssh://[fe80::1]/b", "", "fe80::1", 0, "/b"),
        ("ssh://h/a%20b%3F%23%25'$", "", "h", 0, "/a b?#%'$"),
        ("ssh://h/~/-rf", "", "h", 0, "./-rf"),
        ("ssh://h/~you/b", "", "h", 0, "/~you/b"),
    ],
)
def test_the_parts_of_an_ssh_url(url: str, user: str, host: str, port: int, path: str) -> None:
    """A path is absolute, or begins in the home folder; no part of it can look like an option."""
    found = ssh(url)
    assert (Login(user, host, port), path) == (found.login, found.path)


@pytest.mark.parametrize(
    ("url", "host", "port", "name"),
    [("nbd://h/x", "h", 10809, "x"), ("nbd://h:99", "h", 99, ""), ("nbd://[::1]/a,b", "::1", 10809, "a,b")],
)
def test_the_parts_of_an_nbd_url(url: str, host: str, port: int, name: str) -> None:
    """The export may have no name."""
    found = nbd(url)
    assert (host, port, name) == (found.host, found.port, found.name)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ssh://me:secret@h/b", "may not have a password"),
        ("ssh://-oProxyCommand=x/b", "a URL such as"),
        ("ssh://-l@h/b", "plain user name"),
        ("ssh://h/", "path of a file"),
        ("ssh://h", "path of a file"),
        ("ssh://h/a?b", "%3F"),
        ("ssh://h/a%0Ab", "on one line"),
        ("ssh://h:99999/b", "up to 65535"),
        ("nbd://me@h/b", "without a user"),
        ("http://h/b", "ssh:// or sftp:// or nbd:// or nbds:// or rbd:"),
        ("sftp://h/~/", "path of a file"),
        ("ssh:h/b", "a URL such as"),
    ],
)
def test_what_is_no_url_of_an_image(url: str, why: str) -> None:
    """It is refused with what would fit, and a password is not repeated."""
    table = {"image": url, "mountpoint": "/mnt", "key": "prompt"}
    with pytest.raises(BadConfiguration) as caught:
        config.parse({"volumes": {"v": table}}, Path("/c.toml"))

    assert why in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(("fill", "wrong"), [(None, False), ("sparse", False), ("fallocate", True), ("zero", True)])
def test_what_cannot_be_reserved_is_sparse(fill: str | None, wrong: bool) -> None:
    """SFTP reserves nothing; who asks for it is told."""
    table = {"image": "sftp://me@h:23/~/b", "mountpoint": "/mnt", "key": "prompt"} | ({"fill": fill} if fill else {})
    if wrong:
        with pytest.raises(BadConfiguration, match='fill: only "sparse"'):
            config.parse({"volumes": {"v": table}}, Path("/c.toml"))
        return
    image = config.parse({"volumes": {"v": table}}, Path("/c.toml")).volumes["v"].image
    assert "sparse" == image.fill
    assert isinstance(image.remote, SftpStore)
    assert (Login("me", "h", 23), "./b", "./.b.lukshook-lock") == (
        image.remote.login,
        image.remote.path,
        image.remote.lock,
    )


def test_a_person_without_a_shell_there_gets_the_image_with_sftp() -> None:
    """The port is another option there; the sheet has this line."""
    assert r"scp -s -P 23 -- 'me@h:/a b\[1].img' here" == kinds.parse("sftp://me@h:23/a%20b[1].img").fetch("here")


def table(url: str, **options: str) -> Volume:
    """The volume of a configuration with that image."""
    values = {"image": url, "mountpoint": "/mnt", "key": "prompt", **options}
    return config.parse({"volumes": {"v": values}}, Path("/c.toml")).volumes["v"]


def test_a_server_behind_tls_is_verified() -> None:
    """There has to be something to verify it by, and nbdkit goes on with nothing else."""
    with pytest.raises(BadConfiguration, match="tls_certificates: missing, to verify the server"):
        table("nbds://h/x")
    with pytest.raises(BadConfiguration, match="not together"):
        table("nbds://h/x", tls_certificates="/t", tls_psk="/k")
    store = table("nbds://me@h:99/a%20b", tls_psk="/e/k's").image.remote
    assert store is not None
    script = store.link(read_only=True, silence=9.0).script
    for word in ("nbdkit -r -s nbd", "hostname=h", "port=99", "'export=a b'", "tls=require", "tls-username=me"):
        assert word in script
    assert "nbdcopy 'nbds://me@h:99/a%20b?tls-psk-file=/e/k%27s' f" == store.fetch("f")
    assert "tls-certificates=/t" in (table("nbds://h/x", tls_certificates="/t").image.remote or store).fetch("f")


def test_a_key_for_tls_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    """As with every key file; and one that is not there is named."""
    keys = tmp_path / "k"
    store = table("nbds://h/x", tls_psk=str(keys)).image.remote
    assert store is not None
    with pytest.raises(Unavailable, match="k is not there"):
        store.look(FakeRunner({}))
    keys.write_text("me:00")
    keys.chmod(0o640)
    with pytest.raises(Denied, match="others may read the key file"):
        store.look(FakeRunner({}))
    keys.chmod(0o600)
    assert store.look(FakeRunner({})).length is None


def test_a_lock_file_is_broken_where_there_is_one() -> None:
    """Elsewhere that is a mistake."""
    assert kinds.parse("sftp://h/b").breaking() != kinds.parse("sftp://h/b")
    with pytest.raises(Usage, match="no lock file beside ssh://h/b"):
        kinds.parse("ssh://h/b").breaking()


def test_a_remote_image_appears_in_the_run_folder() -> None:
    """Each volume has a place of its own; the same image twice is a mistake."""
    tables = {
        name: {"image": "ssh://h/b", "mountpoint": f"/mnt/{name}", "key": "prompt", "ssh_config": "/etc/s"}
        for name in ("one", "two")
    }
    found = config.parse({"volumes": {"one": tables["one"]}}, Path("/c.toml"), Path("/run/x")).volumes["one"]
    assert (Path("/run/x/one.remote/image"), "ssh://h/b") == (found.image.image, found.image.shown)
    assert isinstance(found.image.remote, Ssh)
    assert "/etc/s" == found.image.remote.login.config

    with pytest.raises(BadConfiguration, match=r"is the image of volumes\.one too"):
        config.parse({"volumes": tables}, Path("/c.toml"))


@pytest.mark.parametrize("name", ["a b", "a'b", 'a"b', "a$(touch x)b", "a;b", "a\\b", "a,b", "a!b", "ä", "a`b`"])
def test_odd_names_reach_the_far_side_as_they_are(name: str, tmp_path: Path) -> None:
    """Through our shell, ssh, and the login shell there: here with shells in the place of ssh and of nbdkit."""
    store = Ssh("", Login("", "h", 0), f"/srv/{name}")
    script = store.link(read_only=False, silence=0).script.replace("@FOLDER@", str(tmp_path))
    (tmp_path / "ssh").write_text('#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n')
    (tmp_path / "flock").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    for tool in ("ssh", "flock"):
        (tmp_path / tool).chmod(0o755)
    script = script.replace("PATH=", f"PATH={tmp_path}:", 1)

    told = subprocess.run(["sh"], input=script, capture_output=True, text=True, check=True)

    words = ["-xn", "-E", "75", f"/srv/{name}", "sh", "-c", 'exec nbdkit -s file "$0"', f"/srv/{name}"]
    assert words == told.stdout.splitlines()[:-1]
    assert ("", "0\n") == ((tmp_path / "said").read_text(), (tmp_path / "status").read_text())


@pytest.mark.parametrize("url", ["ssh://h/b", "sftp://h/b"])
def test_ssh_says_that_it_gave_a_line_up_whatever_the_user_has_configured(url: str) -> None:
    """In a file of its own: with a quiet LogLevel, nobody would know that a write may still arrive."""
    words = shlex.split(kinds.parse(url).link(read_only=False, silence=9.0).script)
    at = words.index("ssh")
    assert ["-E", OWN_WORDS] == words[at + 1 : at + 3]
    assert "LogLevel=INFO" in words[at:]


def test_who_has_the_lock_there_is_named(tmp_path: Path) -> None:
    """The name goes with the lock: here with shells in the place of ssh and of nbdkit."""
    image = tmp_path / "a b"
    image.touch()
    store = Ssh("ssh://h/b", Login("", "h", 0), str(image))
    script = store.link(read_only=False, silence=0).script.replace("@FOLDER@", str(tmp_path))
    (tmp_path / "ssh").write_text('#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n')
    (tmp_path / "nbdkit").write_text("#!/bin/sh\necho serving\nread line\n")
    for tool in ("ssh", "nbdkit"):
        (tmp_path / tool).chmod(0o755)
    script = script.replace("PATH=", f"PATH={tmp_path}:", 1)

    def refusal() -> str:
        subprocess.run(["sh", "-c", script], stdin=subprocess.DEVNULL, check=True, timeout=30)
        return store.refusal((tmp_path / "said").read_text(), int((tmp_path / "status").read_text())).message

    with subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert b"serving\n" == first.stdout.readline()
        assert f"ssh://h/b is open elsewhere: host {os.uname().nodename} (process {os.getpid()}, since " in refusal()
        first.communicate(b"\n", timeout=30)
    with subprocess.Popen(["flock", image, "cat"], stdin=subprocess.PIPE) as other:
        assert kernel.wait_until(
            lambda: subprocess.run(["flock", "-n", image, "true"], check=False).returncode == 1, 10
        )
        assert f"ssh://h/b is open elsewhere: process {other.pid} there has it" == refusal()
        other.communicate(timeout=30)


class NearShell(FakeRunner):
    """Does here what is to be done there."""

    def run(self, command: Command) -> Result:
        script = shlex.split(command.argv[-1])[-1]
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
        return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("theirs_is", ["a b", "folder/link"])
def test_a_connection_serves_only_the_host_that_opened_the_image_last(tmp_path: Path, theirs_is: str) -> None:
    """It looks at the mark under the lock: here with shells in the place of ssh and of nbdkit.

    The other host may know the image by another name.
    """
    image = tmp_path / "a b"
    image.touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(image)
    store = Ssh("ssh://h/b", Login("", "h", 0), str(image)).with_token(tmp_path / "state" / "token")
    (tmp_path / "ssh").write_text('#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n')
    (tmp_path / "nbdkit").write_text("#!/bin/sh\necho serving\n")
    for tool in ("ssh", "nbdkit"):
        (tmp_path / tool).chmod(0o755)

    def served() -> tuple[str, int]:
        script = store.link(read_only=False, silence=0).script.replace("@FOLDER@", str(tmp_path))
        script = script.replace("PATH=", f"PATH={tmp_path}:", 1)
        done = subprocess.run(["sh"], input=script, capture_output=True, text=True, check=True)
        return done.stdout, int((tmp_path / "status").read_text())

    runner, other = NearShell(), evolve(store, path=str(tmp_path / theirs_is), token=tmp_path / "other" / "token")
    ours = store.hold(runner, read_only=False)
    assert ("serving\n", 0) == served()
    assert ours.identity == store.look(runner).identity
    other.hold(runner, read_only=True)
    assert ("serving\n", 0) == served()
    theirs = other.hold(runner, read_only=False)
    assert ("", 91) == served()
    assert "another host has opened ssh://h/b since" in store.refusal("", 91).message
    assert ours.identity != store.look(runner).identity == theirs.identity
    with subprocess.Popen(["flock", image, "cat"], stdin=subprocess.PIPE) as held:
        assert kernel.wait_until(
            lambda: subprocess.run(["flock", "-n", image, "true"], check=False).returncode == 1, 10
        )
        assert isinstance(store.refusal("", 75), Locked)
        assert ("", 75) == served()
        held.communicate(timeout=30)
    store.hold(runner, read_only=False)
    assert ("serving\n", 0) == served()


@pytest.mark.parametrize("fill", ["sparse", "fallocate"])
def test_only_who_has_the_image_changes_its_length(tmp_path: Path, fill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection holds the lock meanwhile, so another host may have opened it: here with a shell in place of ssh."""
    monkeypatch.setattr(ssh_store, "_UNLOCK_SECONDS", 1)
    image = tmp_path / "a b"
    image.write_bytes(bytes(1 << 20))
    store = Ssh("ssh://h/b", Login("", "h", 0), str(image)).with_token(tmp_path / "token")
    other, runner = store.with_token(tmp_path / "other"), NearShell()
    store.hold(runner, read_only=False)
    for length in (1 << 19, 1 << 21, 1 << 20):
        store.resize(length, fill, runner)
        assert length == image.stat().st_size
    with subprocess.Popen(["flock", image, "cat"], stdin=subprocess.PIPE) as held:
        assert kernel.wait_until(
            lambda: subprocess.run(["flock", "-n", image, "true"], check=False).returncode == 1, 10
        )
        with pytest.raises(Locked, match=f"process {held.pid} there has it"):
            store.resize(1 << 19, fill, runner)
        held.communicate(timeout=30)
    other.hold(runner, read_only=False)
    with pytest.raises(Unavailable, match="another host has opened ssh://h/b since"):
        store.resize(1 << 19, fill, runner)
    assert 1 << 20 == image.stat().st_size
    image.unlink()
    with pytest.raises(Unavailable, match="could not change the size of"):
        other.resize(1 << 19, fill, runner)
    assert not image.exists()


@pytest.mark.parametrize("fault", ["gone", "no descriptor"])
def test_no_connection_without_a_look_where_our_own_mark_cannot_be_read(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is not there is not one that says that the image has no mark; reading needs none."""
    store = ssh("ssh://h/b").with_token(tmp_path / "state" / "token")
    mark.keep(tmp_path / "state" / "token", "")
    assert "exit 91" not in store.link(read_only=False, silence=9.0).script
    if fault == "gone":
        (tmp_path / "state" / "token").unlink()
    else:

        def read(*_: object) -> bytes:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr(files, "read", read)
    with pytest.raises(Unavailable, match="not known whether another host has opened ssh://h/b since"):
        store.link(read_only=False, silence=9.0)
    store.link(read_only=True, silence=9.0)


ANSWER = "5a1b\n100 200 4096\n7 8192 8\n"


def test_what_the_far_side_says() -> None:
    """Sizes in bytes; another boot or another file is another identity."""
    seen = ssh("ssh://h/b").look(FakeRunner({"ssh": Result(0, ANSWER)}))

    assert (8192, 4096, 409600, 819200) == (seen.length, seen.allocated, seen.free, seen.total)
    assert "5a1b 7" == seen.identity


class FarShell(FakeRunner):
    """An ssh that ends with *result*, whose standard error the far side writes; *own*: its own words."""

    def __init__(self, result: Result, own: str) -> None:
        super().__init__({"ssh": result})
        self.own = own

    def run(self, command: Command) -> Result:
        Path(command.argv[command.argv.index("-E") + 1]).write_text(self.own)
        return super().run(command)


@pytest.mark.parametrize(
    ("own", "kind", "words"),
    [
        ("Host key verification failed.\n", Unavailable, "host key of h is not known"),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\n", Refused, "another host key"),
        ("me@h: Permission denied (publickey).\n", Denied, "does not let us in"),
        ("ssh: connect to host h port 22: No route to host\n", Unavailable, "No route to host"),
    ],
)
def test_why_ssh_does_not_get_in(own: str, kind: type[LukshookError], words: str) -> None:
    """Each in one line, with what to do. What the far side says is shown, and decides nothing."""
    with pytest.raises(kind) as caught:
        ssh("ssh://h/b").look(FarShell(Result(255, "", "Welcome!\n"), own))
    assert words in caught.value.message
    assert caught.value.hint

    with pytest.raises(Unavailable) as forged:
        ssh("ssh://h/b").look(FarShell(Result(255, "", own), ""))
    assert f"h cannot be reached: {own.strip()}" == forged.value.message


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (Result(93, "nbdkit\n"), "h has no nbdkit"),
        (Result(92), "the folder of ssh://h/b is not there"),
        (Result(0, "Welcome!\n"), "does not understand"),
    ],
)
def test_why_the_far_side_cannot_be_used(result: Result, words: str) -> None:
    """Each in one line, with what to do."""
    with pytest.raises(Unavailable) as caught:
        ssh("ssh://h/b").look(FarShell(result, ""))

    assert words in caught.value.message
    assert caught.value.hint


def test_a_lock_at_the_far_side_is_told_from_other_failures() -> None:
    """flock(1) ends with the status that we ask for."""
    store = ssh("ssh://h/b")
    assert isinstance(store.refusal("", 75), Locked)
    assert not isinstance(store.refusal("status 75\nended 75\n", 1), Locked)
    refused = store.refusal("nbdkit: error: Permission denied\n", 1)
    assert (False, True) == (isinstance(refused, Locked), "Permission denied" in refused.message)


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("ssh://h/b.img", True),
        ("nbd://h/b", True),
        ("sftp://h/b.img", False),
        ("rbd:pool/b", False),
    ],
)
def test_no_volume_key_is_replaced_where_a_restart_loses_writes(url: str, refused: bool) -> None:
    """What is lost then is no recent write of a backup, which could be run again."""
    volume = table(url)
    if not refused:
        rekey.check_store(volume)
        return
    with pytest.raises(Unavailable, match=r"cannot be replaced through .*: if that machine loses power") as caught:
        rekey.check_store(volume)
    assert "sftp://" in caught.value.hint


def test_abilities_in_words() -> None:
    """What it can do, and what not."""
    words = Abilities(lock=True, measure=True, create=True, grow=False, reboots=False).in_words()
    assert words.startswith("locks out other hosts, ")
    assert words.endswith("; not: changes their size, survives or notices a remote restart")


@pytest.mark.parametrize(
    ("flags", "can"),
    [
        (0, ()),
        (1, ()),
        (4, ()),
        (5, ("flushes",)),
        (7, ("flushes", "read_only")),
        (13, ("flushes", "syncs")),
        (69, ("flushes", "zeroes")),
    ],
)
def test_what_a_server_says_of_its_export(tmp_path: Path, flags: int, can: tuple[str, ...]) -> None:
    """Whether it flushes is what a backup depends on; flags without the first one say nothing."""
    expected = evolve(Export(4096), **dict.fromkeys(can, True))
    assert Export(0) == export.noted(tmp_path)
    export.note(tmp_path, Export.of(4096, flags))
    assert expected == export.noted(tmp_path)
