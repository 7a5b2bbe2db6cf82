"""`age:FILE`, with age itself: a key that several people can read, each with an identity of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lukshook.errors import BadConfiguration, Denied, Exists, Unavailable
from lukshook.keys import key_sources
from lukshook.system.secret import Secret, decode_key
from support import age_plugin
from support.key_volume import KeyVolume, lukshook, opens

pytestmark = [pytest.mark.files, pytest.mark.needs("age", "age-keygen", "cryptsetup")]
TEXT = Secret(bytes(range(32))).text().reveal().decode()


def identity(place: Path) -> str:
    """A new identity; its recipient."""
    subprocess.run(["age-keygen", "-o", place], check=True, capture_output=True)
    place.chmod(0o600)
    return subprocess.run(["age-keygen", "-y", place], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def team(tmp_path: Path) -> Path:
    """A folder with this host's identity, that of Anna, and both as recipients."""
    folder = tmp_path / "age"
    folder.mkdir(mode=0o700)
    recipients = identity(folder / "age.identity") + identity(folder / "anna.identity")
    (folder / "age.recipients").write_text(recipients)
    return folder


def keep(source: str, text: str) -> None:
    module, argument = key_sources.parse(source)
    assert module.store is not None
    module.store(argument, text)


def obtain(source: str) -> str:
    asking = key_sources.Asking(os.environ, "offsite", pytest.fail)
    return key_sources.obtain([source], asking).text().reveal().decode()


def test_each_recipient_reads_the_key(team: Path) -> None:
    """This host without a word more, Anna with her identity; the file has nothing of the key in clear."""
    keep(f"age:{team}/offsite.age", TEXT)

    assert TEXT == obtain(f"age:{team}/offsite.age")
    assert TEXT == obtain(f"age:{team}/offsite.age identity={team}/anna.identity")
    argv = ["age", "--decrypt", "--identity", f"{team}/anna.identity", f"{team}/offsite.age"]
    assert f"{TEXT}\n" == subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert TEXT not in (team / "offsite.age").read_text()
    with pytest.raises(Exists):
        keep(f"age:{team}/offsite.age", TEXT)


def test_who_is_no_recipient_reads_nothing(team: Path) -> None:
    """77, with what age says, and not with where to report it."""
    keep(f"age:{team}/offsite.age", TEXT)
    identity(team / "stranger")
    with pytest.raises(Denied, match="no identity matched any of the recipients"):
        obtain(f"age:{team}/offsite.age identity={team}/stranger")


def test_a_key_that_this_host_could_not_read_is_not_stored(team: Path) -> None:
    """Somebody removed the host from the recipients: found before the key is written, not at the next backup."""
    lines = (team / "age.recipients").read_text().splitlines()
    (team / "age.recipients").write_text(lines[1])
    with pytest.raises(Denied, match="does not open the new key"):
        keep(f"age:{team}/offsite.age", TEXT)
    assert not (team / "offsite.age").exists()


def test_others_cannot_add_themselves(team: Path) -> None:
    """A list of recipients that others can write to gives them the next key."""
    (team / "age.recipients").chmod(0o666)
    with pytest.raises(Denied, match="others can add themselves"):
        keep(f"age:{team}/offsite.age", TEXT)
    assert not (team / "offsite.age").exists()


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("age.identity", "the age identity .* cannot be read"),
        ("age.recipients", "the list of recipients .* cannot be read"),
    ],
)
def test_what_is_missing_is_named(team: Path, gone: str, message: str) -> None:
    """69, with the line that makes it."""
    (team / gone).unlink()
    with pytest.raises(Unavailable, match=message) as caught:
        keep(f"age:{team}/offsite.age", TEXT)
    assert "age-keygen" in caught.value.hint
    with pytest.raises(Unavailable, match="is not there"):
        obtain(f"age:{team}/offsite.age")


def test_a_key_that_another_user_could_have_planted_is_refused(team: Path) -> None:
    """The recipients are no secret: who writes the file before `create` would know the key."""
    keep(f"age:{team}/offsite.age", TEXT)
    (team / "offsite.age").chmod(0o666)
    with pytest.raises(Denied, match="another user could have written"):
        obtain(f"age:{team}/offsite.age")


def test_a_device_opens_it_through_a_plugin(team: Path) -> None:
    """age asks the plugin that the identity names; one that is not installed is named."""
    plugin = team / "bin/age-plugin-standin"
    plugin.parent.mkdir()
    plugin.write_text(f"#!{sys.executable}\n{Path(age_plugin.__file__).read_text()}")
    plugin.chmod(0o755)
    path = {"PATH": f"{plugin.parent}:{os.environ['PATH']}"}
    (team / "age.identity").write_text(f"{age_plugin.identity()}\n")
    encrypt = ["age", "--encrypt", f"--recipient={age_plugin.recipient()}", f"--output={team}/offsite.age"]
    subprocess.run(encrypt, input=f"{TEXT}\n", text=True, env={**os.environ, **path}, check=True)

    found = key_sources.obtain([f"age:{team}/offsite.age"], key_sources.Asking(path, "offsite", pytest.fail))

    assert TEXT == found.text().reveal().decode()
    with pytest.raises(Denied, match="age-plugin-standin"):
        obtain(f"age:{team}/offsite.age")


def test_an_identity_that_others_may_read_is_refused(team: Path) -> None:
    """As for a key file."""
    keep(f"age:{team}/offsite.age", TEXT)
    (team / "age.identity").chmod(0o644)
    with pytest.raises(Denied, match="others may read the age identity"):
        obtain(f"age:{team}/offsite.age")


@pytest.mark.parametrize("argument", ["", "relative", "/a b", "/a who=/b", "/a identity=b", "/a 'b", "/a identity="])
def test_an_argument_that_makes_no_sense(argument: str) -> None:
    """78 when the configuration is read."""
    with pytest.raises(BadConfiguration):
        key_sources.parse(f"age:{argument}")


def use_age(house: KeyVolume, team: Path) -> str:
    """Configure the volume with its own key in age."""
    source = f"age:{team}/own.age"
    keep(source, (house.folder / "own.key").read_text().strip())
    config = house.folder / "config.toml"
    config.write_text(config.read_text().replace(f"file:{house.folder}/own.key", source))
    return source


def is_the_key(source: str, house: KeyVolume) -> bool:
    """Whether what is in age opens the image, and the key from before, which `own.key` still holds, does not."""
    new, old = (decode_key(text.encode(), "age") for text in (obtain(source), (house.folder / "own.key").read_text()))
    return opens(house.image, new) and not opens(house.image, old)


def test_the_life_of_a_key_in_age(house: KeyVolume, team: Path) -> None:
    """A second key is made there, and a rotation replaces the file; all recipients read the new key too."""
    source = use_age(house, team)
    before = (team / "own.age").read_text()

    assert 0 == lukshook(house, "key", "add", "house", "--key", f"age:{team}/second.age")[0]
    assert 0 == lukshook(house, "key", "test", "house", "--key", f"age:{team}/second.age")[0]
    status, _, error = lukshook(house, "key", "rotate", "house")

    assert (0, "") == (status, error)
    assert before != (team / "own.age").read_text()
    assert not (team / "own.age.new").exists()
    assert is_the_key(f"{source} identity={team}/anna.identity", house)


def test_a_dry_run_is_a_script_that_does_the_same(house: KeyVolume, team: Path) -> None:
    """The lines for a rotation, pasted into a shell."""
    source = use_age(house, team)
    status, script, _ = lukshook(house, "--dry-run", "key", "rotate", "house")
    assert 0 == status
    script = re.sub(r"lukshook trust .*", "", script)

    subprocess.run(["sh", "-e"], input=script, text=True, check=True, capture_output=True)

    assert is_the_key(source, house)
    assert ["age.identity", "age.recipients", "anna.identity", "own.age"] == sorted(os.listdir(team))


def test_the_sheet_names_the_command_that_prints_the_key(house: KeyVolume, team: Path) -> None:
    """It works as it stands there."""
    use_age(house, team)
    sheet = lukshook(house, "sheet", "house")[1]
    (line,) = re.findall(r"^    (age --decrypt .*)$", sheet, re.MULTILINE)
    printed = subprocess.run(["sh", "-c", line], check=True, capture_output=True).stdout
    assert opens(house.image, decode_key(printed, "age"))
