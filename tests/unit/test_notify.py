"""`[notify]`: whom to tell, what is said, and that it neither fails a backup nor holds it up for long."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen

from lukshook import config
from lukshook.errors import BadConfiguration, NotSafe, Unavailable
from lukshook.notify import notices, web
from lukshook.notify.channel import KINDS, Channel
from lukshook.notify.message import Message
from lukshook.system import command, forked_call, kernel
from lukshook.system.clock import now
from lukshook.volume.known_state import KnownState
from support.installed_plugins import Host
from support.lukshook_process import Done
from support.receiver import Receiver, receiving
from support.volume import NAME, CliVolume

SECRET = "s3cret-0f3c"


@pytest.fixture(name="receiver")
def _receiver(tmp_path: Path) -> Iterator[Receiver]:
    with receiving(tmp_path) as found:
        yield found


@frozen
class Told(Host):
    """A lukshook whose volume is a file, with channels; a good close is noted as the real one does."""

    opening_fails: Callable[[], None] = lambda: None
    closing_fails: Callable[[], None] = lambda: None
    job: str = ""

    def close_volume(self, *arguments: Any, failed: bool, **more: Any) -> tuple[()]:
        volume, _, site = arguments
        was_open = self.opened.exists()
        super().close_volume(*arguments, failed=failed, **more)
        self.closing_fails()
        state = site.state(volume)
        if was_open and not failed:
            state.save(evolve(state.known, last_success=now()))
        return ()

    def open_volume(self, *arguments: Any, **more: Any) -> None:
        self.opening_fails()
        super().open_volume(*arguments, **more)

    def told(self, tables: str, *words: str, prepare: Callable[[], None] = lambda: None) -> Done:
        """Run lukshook with the channels in *tables*."""
        extra = self.folder / "notify"
        extra.write_text(tables)
        configure = CliVolume.configure

        def as_the_job() -> None:
            prepare()
            os.environ |= {"LUKSHOOK_JOB": self.job} if self.job else {}

        def with_channels(volume: CliVolume, **options: object) -> None:
            configure(volume, **options)
            volume.config.write_text(volume.config.read_text() + extra.read_text())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CliVolume, "configure", with_channels)
            return self.lukshook(*words, prepare=as_the_job)


@pytest.fixture(name="host")
def _host(tmp_path: Path) -> Told:
    return Told(tmp_path)


def channel(kind: str, **options: object) -> str:
    """The lines of a channel that is called after its kind."""
    lines = [f"{name} = {value!r}" for name, value in options.items()]
    return "\n".join([f"[notify.{kind}]", f'kind = "{kind}"', *lines, ""]).replace("True", "true")


def a_good_run(host: Told, tables: str, prepare: Callable[[], None] = lambda: None) -> None:
    """Before and after, without a word."""
    for words in (("before-backup", NAME), ("after-backup", NAME)):
        done = host.told(tables, *words, prepare=prepare)
        assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


# What the services are told


def test_healthchecks_hears_start_and_success(host: Told, receiver: Receiver) -> None:
    """A check turns late when one of them does not come."""
    a_good_run(host, channel("healthchecks", url=f"{receiver.url}/{SECRET}"))

    assert [f"POST /{SECRET}/start", f"POST /{SECRET}"] == receiver.asked()


def test_success_is_told_after_closing(host: Told, receiver: Receiver) -> None:
    """A backup that turns out not to be stored is a failure, with its status and the reason."""

    def fail() -> None:
        raise NotSafe("sector 7 of /srv/untrusted is gone", hint="no")

    failing = evolve(host, closing_fails=fail)
    tables = channel("healthchecks", url=f"{receiver.url}/{SECRET}", details=True)
    host.told(tables, "before-backup", NAME)

    assert 74 == failing.told(tables, "after-backup", NAME).returncode

    assert [f"POST /{SECRET}/start", f"POST /{SECRET}/74"] == receiver.asked()
    assert "sector 7 of /srv/untrusted is gone" in receiver.requests()[-1]["body"]


def test_no_name_and_no_path_is_sent_unless_wanted(host: Told, receiver: Receiver) -> None:
    """By default a service learns that a backup failed, and what the exit status means."""

    def fail() -> None:
        raise Unavailable("the image /srv/untrusted/backup.img is not there", hint="no")

    failing = evolve(host, opening_fails=fail)
    tables = "".join(channel(kind, url=f"{receiver.url}/{kind}") for kind in ("healthchecks", "ntfy", "webhook"))

    assert 69 == failing.told(tables, "before-backup", NAME).returncode

    everything = receiver.log.read_text()
    assert {"POST /healthchecks/69", "POST /ntfy", "POST /webhook"} == set(receiver.asked())
    assert 3 == everything.count("exit status 69: the store, the image or a tool is not available")
    assert [] == [word for word in (NAME, "untrusted", os.uname().nodename) if word in everything]


def test_ntfy_gets_its_token_from_a_file(host: Told, receiver: Receiver) -> None:
    """Which root alone can read, also if the request is made as nobody."""
    secret = host.folder / "token"
    secret.write_text(f"{SECRET}\n")
    secret.chmod(0o600)
    tables = channel("ntfy", url=f"{receiver.url}/topic", token=f"file:{secret}", events=["start", "success"])

    a_good_run(host, tables)

    first, second = receiver.requests()
    assert ["lukshook: a backup has started", "lukshook: a backup is done and safely stored"] == [
        first["body"],
        second["body"],
    ]
    assert f"Bearer {SECRET}" == first["headers"]["Authorization"]
    assert ("lukshook", "default") == (first["headers"]["Title"], first["headers"]["Priority"])


def test_a_webhook_gets_its_template(host: Told, receiver: Receiver) -> None:
    """Whatever stands in a reason, the JSON stays JSON."""
    template = '{"content": "$event of $volume: $exit_status, $reason"}'
    tables = channel("webhook", url=f"{receiver.url}/hook", template=template, details=True)

    def fail() -> None:
        raise Unavailable('"quoted" \\ \n $event', hint="no")

    evolve(host, opening_fails=fail).told(tables, "before-backup", NAME)

    (request,) = receiver.requests()
    assert (
        'failure of offsite: 69, "quoted" \\ \\n $event'
        == tomllib.loads(f"x = {request['body'].partition(': ')[2].removesuffix('}')}")["x"]
    )
    assert "application/json" == request["headers"]["Content-Type"]


def test_uptime_kuma_is_pushed(host: Told, receiver: Receiver) -> None:
    """With the status of a run's command."""
    tables = channel("uptime-kuma", url=f"{receiver.url}/api/push/{SECRET}?status=up&msg=OK&ping=")

    host.told(tables, "run", NAME, "--", "true")
    assert 3 == host.told(tables, "run", NAME, "--", "sh", "-c", "exit 3").returncode

    path = f"GET /api/push/{SECRET}"
    assert [
        f"{path}?status=up&msg=lukshook%3A+a+backup+is+done+and+safely+stored",
        f"{path}?status=down&msg=lukshook%3A+a+backup+failed+with+exit+status+3",
    ] == receiver.asked()


def test_a_mail_goes_through_sendmail(host: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """To whom the configuration says, marked as one that wants no answer."""
    bin_folder = host.folder / "bin"
    bin_folder.mkdir()
    letter = host.folder / "letter"
    (bin_folder / "sendmail").write_text(f'#!/bin/sh\necho "$@" > {letter}\ncat >> {letter}\n')
    (bin_folder / "sendmail").chmod(0o755)
    monkeypatch.setattr(command, "TOOL_PATH", f"{bin_folder}:{command.TOOL_PATH}")
    tables = '[notify.post]\nkind = "mail"\nto = "root"\nfrom = "backup@example.org"\ndetails = true\n'

    host.told(tables, "before-backup", NAME)
    host.told(tables, "after-backup", NAME, "--failed")

    arguments, _, text = letter.read_text().partition("\n")
    found = email.message_from_string(text)
    assert "-i -t" == arguments
    assert ("root", "backup@example.org", "auto-generated") == (found["To"], found["From"], found["Auto-Submitted"])
    assert "lukshook: a backup failed" == found["Subject"]
    assert f"volume {NAME} on {os.uname().nodename}: a backup failed: the backup tool says so\n" == found.get_payload()


def test_apprise_tells_the_rest(host: Told, receiver: Receiver) -> None:
    """Its own URL for a service that takes JSON."""
    pytest.importorskip("apprise")
    tables = channel("apprise", url=receiver.url.replace("http://", "json://") + "/notify", events=["success"])

    a_good_run(host, tables, warnings.resetwarnings)  # pytest makes errors of a library's

    assert ["POST /notify"] == [path.removesuffix("/") for path in receiver.asked()]
    assert "a backup is done" in receiver.requests()[0]["body"]


def test_apprise_that_is_not_there_is_a_warning(host: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is missing."""
    monkeypatch.setitem(sys.modules, "apprise", None)

    host.told(channel("apprise", url="json://127.0.0.1", events=["start"]), "before-backup", NAME)
    done = host.told(channel("apprise", url="json://127.0.0.1", events=["start"]), "before-backup", NAME)

    assert done.stderr.endswith("apprise: it needs the library Apprise\n")


# When nothing is told


def test_after_without_before_is_no_success(host: Told, receiver: Receiver) -> None:
    """A host that calls "after" again, or alone, has made no backup."""
    tables = channel("healthchecks", url=f"{receiver.url}/{SECRET}")
    a_good_run(host, tables)

    assert 0 == host.told(tables, "after-backup", NAME).returncode

    assert [f"POST /{SECRET}/start", f"POST /{SECRET}"] == receiver.asked()


def test_a_quiet_skip_wakes_nobody(host: Told, receiver: Receiver) -> None:
    """A disk that is not plugged in, with a good backup of yesterday."""

    def fail() -> None:
        raise Unavailable("the store is not there", hint="no")

    tables = channel("healthchecks", url=f"{receiver.url}/{SECRET}")
    a_good_run(host, tables)
    away = evolve(host, opening_fails=fail)

    assert 75 == away.told(tables, "before-backup", NAME, "--soft").returncode
    assert 2 == len(receiver.asked())
    assert 69 == away.told(tables, "before-backup", NAME).returncode
    assert 3 == len(receiver.asked())


def test_one_backup_is_one_failure(host: Told, receiver: Receiver) -> None:
    """Tools call "after" with --failed also when "before" has failed; the next backup, and another job, are news."""

    def fail() -> None:
        raise Unavailable("the store is not there", hint="no")

    tables = channel("webhook", url=f"{receiver.url}/{SECRET}")
    away = evolve(host, opening_fails=fail)

    def messages(who: Told, *words: str) -> int:
        before = len(receiver.requests())
        who.told(tables, *words)
        return len(receiver.requests()) - before

    after = ("after-backup", NAME, "--failed")
    assert [1, 0, 0] == [messages(away, *words) for words in (("before-backup", NAME), after, after)]
    assert 1 == messages(away, "before-backup", NAME)
    assert [0, 1, 0] == [messages(host, *words) for words in (("before-backup", NAME), after, after)]
    assert 1 == messages(away, "before-backup", NAME)
    other = evolve(host, job="another")
    assert [1, 0] == [messages(other, *after), messages(other, *after)]


def test_closing_that_fails_is_told_after_the_host_was_heard(host: Told, receiver: Receiver) -> None:
    """What is known is only that the backup failed."""

    def fail() -> None:
        raise NotSafe("sector 7 of /srv/untrusted is gone", hint="no")

    tables = channel("webhook", url=f"{receiver.url}/{SECRET}")
    for who in (host, evolve(host, closing_fails=fail)):
        who.told(tables, "after-backup", NAME, "--failed")

    assert 2 == len(receiver.requests())


def test_a_channel_of_another_volume_is_left_alone(host: Told, receiver: Receiver) -> None:
    """Each volume can have a check of its own."""
    other = '[volumes.other]\nimage = "/srv/o.img"\nmountpoint = "/mnt/o"\nkey = "prompt"\n'
    tables = channel("healthchecks", url=f"{receiver.url}/{SECRET}", volumes=["other"])

    a_good_run(host, other + tables)

    assert [] == receiver.asked()


def test_a_dry_run_tells_nobody(host: Told, receiver: Receiver) -> None:
    host.told(channel("healthchecks", url=f"{receiver.url}/{SECRET}"), "--dry-run", "before-backup", NAME)

    assert [] == receiver.asked()


# A backup that does not happen


def last_success(host: Told, days: float | None) -> None:
    """The last good backup of the volume was that long ago, by the clock of this machine."""
    state = KnownState(host.folder / "state", NAME)
    state.save(evolve(state.known, last_success=None if days is None else now() - days * 86400))


@pytest.mark.parametrize(
    ("kind", "request_line"),
    [
        ("healthchecks", "POST /x/fail"),
        ("uptime-kuma", "GET /x?status=down&msg=lukshook%3A+a+backup+is+late"),
        ("ntfy", "POST /x"),
        ("webhook", "POST /x"),
    ],
)
def test_a_late_backup_is_told_through_each_channel(
    host: Told, receiver: Receiver, kind: str, request_line: str
) -> None:
    """From the day on that `stale_after` says, and not before; the default is a week."""
    tables = channel(kind, url=f"{receiver.url}/x", events=["late"])

    last_success(host, 6.9)
    assert (0, "", "") == ((done := host.told(tables, "notify", "--late")).returncode, done.stdout, done.stderr)
    assert [] == receiver.asked()

    last_success(host, 7.1)
    done = host.told(tables, "notify", "--late")
    assert (0, f"{NAME}: the last good backup is 7 d old\n{kind}: sent\n") == (done.returncode, done.stdout)
    assert [request_line] == receiver.asked()


@pytest.mark.parametrize(("days", "reason"), [(None, "there was no good backup yet"), (-30, "dated in the future")])
def test_a_backup_that_never_was_is_late(host: Told, receiver: Receiver, days: float | None, reason: str) -> None:
    """By default too, and with the reason where it is wanted."""
    last_success(host, days)

    host.told(channel("ntfy", url=f"{receiver.url}/x", details=True), "notify", "--late")

    (request,) = receiver.requests()
    assert request["body"].startswith(f"volume {NAME} on {os.uname().nodename}: a backup is late: ")
    assert reason in request["body"]
    assert "high" == request["headers"]["Priority"]


def test_what_is_known_but_damaged_is_late(host: Told, receiver: Receiver) -> None:
    """It must not hide that there may be no backup."""
    last_success(host, 1)
    (host.folder / "state" / f"{NAME}.json").write_text("{")

    assert 0 == host.told(channel("ntfy", url=f"{receiver.url}/x"), "notify", "--late").returncode
    assert ["POST /x"] == receiver.asked()


def test_a_late_backup_that_cannot_be_told(host: Told, receiver: Receiver) -> None:
    """The timer's unit fails, which its log shows."""
    last_success(host, 9)

    assert 69 == host.told(channel("ntfy", url=f"{receiver.url}/missing"), "notify", "--late").returncode


# Services that are away, broken or hostile


def warning(done: Done) -> str:
    """The one warning of a hook that did its work all the same; it does not show a URL."""
    assert 0 == done.returncode, done.stderr
    assert 1 == done.stderr.count("\n"), done.stderr
    assert SECRET not in done.stderr
    assert done.stderr.startswith(f"warning: the start of the backup to volume {NAME} was not reported everywhere: ")
    return done.stderr.rstrip("\n").rpartition("everywhere: ")[2]


def hasty() -> None:
    """So that a test need not wait between two tries, nor for one that gets no answer."""
    web._PAUSE, web._STEP = 0.01, 0.5


def impatient() -> None:
    """So that a test need not wait as long as a backup does."""
    notices.AT_START = notices.AT_END = 3.0
    from lukshook.plugins import notifying  # noqa: PLC0415

    notifying.AT_START = notifying.AT_END = 3.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("missing", "answered 404"),
        ("broken", "answered 503"),
        ("elsewhere", "answered 302"),
        ("never", "no answer in time"),
        ("headers", "HTTPException"),
        ("rubbish", "BadStatusLine"),
    ],
)
def test_a_service_that_fails_is_one_warning(host: Told, receiver: Receiver, path: str, fault: str) -> None:
    """The backup goes on, also with an answer that never ends, or that leads elsewhere."""
    tables = channel("healthchecks", url=f"{receiver.url}/{path}/{SECRET}")

    assert f"healthchecks: 127.0.0.1: {fault}" == warning(host.told(tables, "before-backup", NAME, prepare=hasty))
    assert "/redirected" not in receiver.log.read_text()


def test_an_answer_without_an_end_is_good_enough(host: Told, receiver: Receiver) -> None:
    """The first bytes of it are read; its status is what counts."""
    done = host.told(channel("healthchecks", url=f"{receiver.url}/endless/x"), "before-backup", NAME)

    assert (0, "") == (done.returncode, done.stderr)


def test_a_service_that_fails_once_is_asked_again(host: Told, receiver: Receiver) -> None:
    done = host.told(channel("healthchecks", url=f"{receiver.url}/once/x"), "before-backup", NAME)

    assert (0, "") == (done.returncode, done.stderr)
    assert ["POST /once/x/start"] * 2 == receiver.asked()


def test_a_closed_port_is_one_warning_for_all_channels(host: Told) -> None:
    tables = channel("healthchecks", url="http://127.0.0.1:1/") + channel(
        "ntfy", url="http://127.0.0.1:1/t", events=["start"]
    )

    found = warning(host.told(tables, "before-backup", NAME, prepare=hasty))

    assert "healthchecks: 127.0.0.1: Connection refused; ntfy: 127.0.0.1: Connection refused" == found


@pytest.mark.needs("openssl")
def test_a_certificate_is_verified(host: Told) -> None:
    """One that nobody has signed is refused, before the secret path is sent."""
    key, certificate = str(host.folder / "tls.key"), str(host.folder / "tls.crt")
    request = (
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=x",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    )
    subprocess.run(["openssl", *request, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with receiving(host.folder, certificate, key) as receiver:
        tables = channel("healthchecks", url=f"{receiver.url}/{SECRET}")

        assert "its certificate is not trusted" in warning(host.told(tables, "before-backup", NAME, prepare=hasty))
        assert [] == receiver.asked()

        def trusting() -> None:
            os.environ["SSL_CERT_FILE"] = certificate

        assert "" == host.told(tables, "before-backup", NAME, prepare=trusting).stderr
        assert [f"POST /{SECRET}/start"] == receiver.asked()


@pytest.mark.parametrize(
    "content",
    ["", "two\nlines", "https://\u00fc/", "file:///etc/passwd", "https://a:s3cret-0f3c@127.0.0.1/", "x" * 9000],
)
def test_a_secret_that_is_none_is_a_warning(host: Told, content: str) -> None:
    """It is not shown."""
    place = host.folder / "url"
    place.write_text(content)
    place.chmod(0o600)

    found = warning(host.told(channel("healthchecks", url=f"file:{place}"), "before-backup", NAME, prepare=hasty))

    assert found.startswith("healthchecks: ")


def test_a_secret_that_others_can_read_is_not_used(host: Told, receiver: Receiver) -> None:
    place = host.folder / "url"
    place.write_text(f"{receiver.url}/{SECRET}")
    place.chmod(0o644)

    assert "others may read" in warning(
        host.told(channel("healthchecks", url=f"file:{place}"), "before-backup", NAME, prepare=hasty)
    )
    assert [] == receiver.asked()


def test_the_time_is_kept_whatever_hangs(host: Told) -> None:
    """A password manager that asks somebody, here: it is ended, with what it has started."""
    mark = host.folder / "started"
    tables = channel("healthchecks", url=f"command:sh -c 'echo $$ > {mark}; exec sleep 3600'".replace("'", '"'))
    started = time.monotonic()

    done = host.told(tables, "before-backup", NAME, prepare=impatient)

    assert "healthchecks: not done within 3 s" == warning(done)
    assert time.monotonic() - started < 60
    if mark.exists():  # not on a machine that is so busy that it was never started
        wait_for_end(int(mark.read_text()))


def wait_for_end(pid: int) -> None:
    """Wait until a process that was killed is gone, or only waits for whoever has adopted it."""
    while True:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.01)


# In children


def test_each_child_tells_how_it_ended() -> None:
    """At the same time; one that dies or raises says nothing, and none of them has our files or our output."""

    def dies() -> str:
        os._exit(3)

    def raises() -> str:
        raise SystemExit("no")

    def looks() -> str:
        os.write(1, b"nobody sees this")
        return " ".join(sorted(os.readlink(f"/proc/self/fd/{number}").split(":")[0] for number in range(3)))

    told = forked_call.in_children([lambda: "", dies, raises, looks, lambda: "x" * 9000], 60)

    assert ["", None, None, "/dev/null /dev/null /dev/null", "x" * 4095] == told


def hang() -> str:
    time.sleep(3600)
    return ""


def test_no_child_is_left() -> None:
    before = kernel.children(os.getpid())

    assert [None, None] == forked_call.in_children([hang, hang], 0.1)

    assert before == kernel.children(os.getpid())


# The configuration

VOLUME = '[volumes.offsite]\nimage = "/srv/b.img"\nmountpoint = "/mnt/b"\nkey = "prompt"\n'


def channels(text: str) -> tuple[Channel, ...]:
    return config.parse(tomllib.loads(VOLUME + text), Path("/c.toml")).notify


def test_each_kind_is_read_with_few_options() -> None:
    found = channels(
        "".join(channel(kind, **dict.fromkeys(KINDS[kind][0], "https://x/y")) for kind in KINDS if kind != "mail")
    )

    assert [kind for kind in KINDS if kind != "mail"] == [one.kind for one in found]
    assert [("start", "success", "failure"), ("success", "failure")] == [one.events for one in found[:2]]
    assert [False] * 5 == [one.details for one in found]
    assert "https" not in repr(found)


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ("notify = 1", "notify: must be tables"),
        ("[notify]\nx = 1", "notify.x.kind: has to be one of healthchecks"),
        ("[notify.x]\nkind = 'pager'", "notify.x.kind: has to be one of"),
        ("[notify.'a b']\nkind = 'mail'\nto = 'root'", "notify.a b: a name has up to 40"),
        ("[notify.x]\nkind = 'ntfy'", "notify.x.url: missing"),
        ("[notify.x]\nkind = 'mail'\nto = 'root'\nurl = 'https://x'", "notify.x.url: mail has no such option"),
        ("[notify.x]\nkind = 'mail'\nto = 'a@b, c@d'", "notify.x.to: has to be one mail address"),
        ('[notify.x]\nkind = "mail"\nto = "root\\nBcc: x@y"', "notify.x.to: has to be one mail address"),
        ("[notify.x]\nkind = 'ntfy'\nurl = 'SECRET'", "notify.x.url: has to be a URL, or where it is"),
        ("[notify.x]\nkind = 'ntfy'\nurl = 'ftp://SECRET/'", "notify.x.url: has to begin with https://"),
        ("[notify.x]\nkind = 'ntfy'\nurl = 'https://me:SECRET@x/'", "notify.x.url: has to begin with https://"),
        ("[notify.x]\nkind = 'ntfy'\nurl = 'https://[SECRET/'", "notify.x.url: has to begin with https://"),
        ("[notify.x]\nkind = 'ntfy'\nurl = 'file:SECRET'", "notify.x.url: the key source file cannot be used"),
        ("[notify.x]\nkind = 'ntfy'\nurl = 'env:SECRET'", "notify.x.url: has to be a URL, or where it is"),
        ("[notify.x]\nkind = 'ntfy'\nurl = 'https://x'\nevents = ['end']", "notify.x.events: has to be a list with"),
        ("[notify.x]\nkind = 'ntfy'\nurl = 'https://x'\nvolumes = ['no']", "notify.x.volumes: there is no volume no"),
        ("[notify.x]\nkind = 'ntfy'\nurl = 'https://x'\ndetails = 'yes'", "notify.x.details: has to be true or false"),
        ("[notify.x]\nkind = 'webhook'\nurl = 'https://x'\ntemplate = '$key'", "notify.x.template: has to be a text"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(lines: str, fault: str) -> None:
    """And without what may be a secret."""
    text = f"{lines}\n{VOLUME}" if lines.startswith("notify") else VOLUME + lines
    with pytest.raises(BadConfiguration) as caught:
        config.parse(tomllib.loads(text), Path("/c.toml"))

    assert fault in caught.value.message
    assert "SECRET" not in caught.value.message


def test_a_reason_is_clipped_and_printable() -> None:
    """It may be as long as a path, and have any character in it."""
    text = Message("failure", "offsite", "he\udcffre", 74, "\x1b[2J\n" + "x" * 5000).text(details=True)

    assert text.isprintable()
    assert len(text) < 1200


# What `check` says


def checked(host: Told, tables: str, **more: Any) -> list[str]:
    """The lines of `check` about messages."""
    done = host.told(tables, "check", NAME, **more)
    return [line.strip() for line in done.stdout.splitlines() if "through" in line]


def test_check_looks_at_each_channel_of_the_volume(host: Told, receiver: Receiver) -> None:
    """And sends nothing."""
    (host.folder / "token").write_text(f"{SECRET}\n")
    (host.folder / "token").chmod(0o600)
    tables = channel("ntfy", url=f"{receiver.url}/x", token=f"file:{host.folder}/token")
    tables += channel("healthchecks", url=f"{receiver.url}/{SECRET}", volumes=["other"])
    other = '[volumes.other]\nimage = "/srv/o.img"\nmountpoint = "/mnt/o"\nkey = "prompt"\n'

    assert ["ok       messages through ntfy (lukshook notify ntfy sends one)"] == checked(host, tables + other)
    assert [] == receiver.requests()


@pytest.mark.parametrize(
    ("kind", "options", "fault"),
    [
        ("ntfy", {"url": "file:/no/such/file"}, "the key file /no/such/file is not there"),
        ("webhook", {"url": "command:false"}, ""),
        ("webhook", {"url": "command:echo ftp://example.org"}, "its URL is none that can be asked"),
        ("webhook", {"url": "command:echo"}, "what command:echo has is no URL or token"),
        ("apprise", {"url": "nonsense://x"}, "Apprise does not know its URL"),
    ],
)
def test_check_names_a_channel_that_cannot_work(host: Told, kind: str, options: dict[str, str], fault: str) -> None:
    """A warning: no backup depends on it. The library Apprise itself uses what Python warns of."""
    (line,) = checked(host, channel(kind, **options), prepare=lambda: warnings.simplefilter("ignore"))

    assert line.startswith(f"warning  no message through {kind}: {fault}")


def test_check_misses_sendmail(host: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "TOOL_PATH", str(host.folder))

    (line,) = checked(host, channel("mail", to="root"))

    assert line.startswith("warning  no message through mail: sendmail is not installed")


def test_nothing_of_it_is_imported_without_channels() -> None:
    """A hook starts often."""
    program = (
        "import sys; from lukshook import config; from pathlib import Path; import lukshook.cli.hooks; "
        f"config.parse({tomllib.loads(VOLUME)!r}, Path('/c')); "
        "print([name for name in sys.modules if 'notify' in name or name in ('ssl', 'http.client', 'urllib.request')])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "[]" == shown.stdout.strip()


# The command


def test_a_test_message_goes_to_each_channel(host: Told, receiver: Receiver) -> None:
    """Whatever it is told of otherwise; a check of Healthchecks keeps its state."""
    tables = channel("healthchecks", url=f"{receiver.url}/{SECRET}") + channel("ntfy", url=f"{receiver.url}/topic")

    done = host.told(tables, "notify")

    assert (0, "healthchecks: sent\nntfy: sent\n") == (done.returncode, done.stdout)
    assert {f"POST /{SECRET}/log", "POST /topic"} == set(receiver.asked())
    assert (0, "ntfy: sent\n") == ((only := host.told(tables, "notify", "ntfy")).returncode, only.stdout)


def test_a_test_message_that_is_not_taken(host: Told, receiver: Receiver) -> None:
    done = host.told(channel("ntfy", url=f"{receiver.url}/missing"), "notify")

    assert (69, "ntfy: 127.0.0.1: answered 404\n") == (done.returncode, done.stdout)


def test_a_secret_that_others_can_read_is_a_warning(host: Told, receiver: Receiver) -> None:
    """Of the test message alone: a backup says nothing."""

    def for_all() -> None:
        (host.folder / "config.toml").chmod(0o644)

    def for_its_owner() -> None:
        (host.folder / "config.toml").chmod(0o600)

    tables = channel("ntfy", url=f"{receiver.url}/{SECRET}")
    done = host.told(tables, "notify", prepare=for_all)

    assert (0, 1) == (done.returncode, done.stderr.count("\n"))
    assert done.stderr.startswith("warning: other users can read the URL or token of ntfy in ")
    assert SECRET not in done.stderr
    assert "" == host.told(tables, "notify", prepare=for_its_owner).stderr


@pytest.mark.parametrize(("tables", "words", "status"), [("", (), 78), (channel("ntfy", url="https://x"), ("no",), 64)])
def test_a_channel_that_is_not_there(host: Told, tables: str, words: tuple[str, ...], status: int) -> None:
    assert status == host.told(tables, "notify", *words).returncode
