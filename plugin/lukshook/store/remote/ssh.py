"""A machine with a shell: `ssh://user@host[:port]/path`; `/~/` at the begin of the path is the user's home folder.

The image is served by nbdkit(1) there, which holds the lock on it, through one ssh for each connection. A host whose
connection has ended no longer has the lock, so another one may get the image. So that the former one does not come back
with what it still had to write, who opens the image for writing leaves a mark in a file beside it (`mark`), and each
connection looks at that, under the lock, before it serves.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import ClassVar

from attrs import evolve, frozen

from lukshook import size
from lukshook.errors import Exists, LukshookError, Unavailable
from lukshook.store.remote import mark
from lukshook.store.remote.kind import FENCED, Abilities, Link, Locked, Seen, Store, connecting, reason, watched
from lukshook.store.remote.login import OF_SSH, Login, own_words, path_of
from lukshook.store.remote.parts import Parts
from lukshook.store.remote.sftp_session import ByShell, session
from lukshook.store.sftp_client import Sftp, SftpTarget
from lukshook.system.command import Result, Runner, change, read
from lukshook.system.text import clipped, one_line

_SECONDS = 90.0
_ALLOCATE_SECONDS = 3600.0
#: Exit statuses: of flock(1), as we ask for it; of our own scripts.
_LOCKED, _UNMARKED, _TAKEN, _ABSENT, _LACKING, _THERE = 75, 90, 91, 92, 93, 94
#: Seconds until an earlier connection of ours has let its lock go.
_UNLOCK_SECONDS = 15
#: Characters that a message shows of what the far side says.
_MOST_SHOWN = 300
_NEEDED = ("flock", "nbdkit", "stat")
#: What has each program that may be missing there.
_PACKAGES = {"flock": "util-linux", "nbdkit": "nbdkit", "stat": "coreutils", "sftp-server": "openssh-sftp-server"}
#: What begins the last word of the flock(1) that holds our lock there: who has it. So the name goes with the lock.
_MARK = "lukshook for "
#: Says who has the lock on "$p", as far as the kernel there shows that (proc_locks(5)). A shell reads byte by byte, and
#: misses a line where another lock goes meanwhile; so cat(1) reads all at once.
_NAME_HOLDER = (
    """{ i=$(stat -L -c %i -- "$p"); """
    """cat /proc/locks | while read -r _ t _ _ n f _; do [ "$t:${f##*:}" = "FLOCK:$i" ] || continue; """
    """l=$(tr "\\0" "\\n" <"/proc/$n/cmdline" | tail -n 1); case "$l" in """
    f"""{shlex.quote(_MARK)}*) echo "$l" ;; *) echo {shlex.quote(_MARK)}"process $n there" ;; esac; break; """
    """done >&2; }"""
)
#: Ends as flock(1) has ended.
_TELL_HOLDER = f's=$?; [ "$s" -ne {_LOCKED} ] || {_NAME_HOLDER}; exit "$s"'
#: What ends the name of the file for the mark, which begins with a dot.
_MARKED = ".lukshook-holder"
#: Finds that file, $m, beside the image: the same for all names of it that are symbolic links.
_FIND_MARK = f'm=$(readlink -f -- "$p"); m=${{m%/*}}/.${{m##*/}}{_MARKED}'
#: Leaves the mark $2 in the file $1.
_LEAVE_MARK = 'umask 077; printf "%s\\n" "$2" >"$1" && sync -- "$1"'
#: Ends unless the file $1 has the mark $2.
_SAME_MARK = f'[ "$(cat -- "$1")" = "$2" ] || exit {_TAKEN}; '
#: Where systems have the SFTP server of OpenSSH, which is on nobody's PATH: Debian, Fedora, Arch and Alpine, BSD.
SFTP_SERVERS = (
    *("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"),
    *("/usr/libexec/sftp-server", "/usr/lib/sftp-server"),
)
#: What comes before its answers. A host that runs a server of its own, whatever we ask for, does not say it.
_GREETING = "lukshook sftp"
#: Starts it, $0.
_SERVE_FILES = f'echo {shlex.quote(_GREETING)}; exec "$0"'
#: Before the first copy the lock is that of its folder: after a broken connection, nobody else writes NAME.part until
#: the former server has left. Some file systems (NFS) have no lock on folders: there it *serves* without one.
_LOCK_FOLDER = (
    'w=; [ -f "$p" ] || {{ p=$(dirname -- "$p"); w=", for a first copy into this folder,"; [ -d "$p" ] && '
    'flock -n -E {locked} "$p" true 2>/dev/null; case $? in 0|{locked}) ;; *) {serves} ;; esac; }}; '
)
_CREATE = {
    "sparse": 'truncate --size="$n" -- "$p"',
    "fallocate": 'fallocate --length "$n" -- "$p"',
    "zero": 'head --bytes="$n" /dev/zero >"$p"',
}


@frozen
class Ssh(Store):
    """*path*: of the image there. *token*: a file with our mark, which is there while we have the image."""

    login: Login
    path: str
    token: Path | None = None

    abilities: ClassVar[Abilities] = Abilities(
        lock=True, measure=True, create=True, grow=True, reboots=True, copies=True
    )
    tools: ClassVar[tuple[str, ...]] = ("ssh",)
    changed: ClassVar[str] = (
        "has restarted, has let another host open the image, or has put another file in the image's place"
    )

    def fetch(self, file: str) -> str:
        """Through the same shell."""
        return f"{self.login.by_hand(f'cat {shlex.quote(self.path)}')} > {file}"

    def with_config(self, config: Path | None) -> Ssh:
        """The same, with that file."""
        return evolve(self, login=evolve(self.login, config=str(config) if config else ""))

    def with_agent(self, agent: str) -> Ssh:
        """The same, with that agent."""
        return evolve(self, login=evolve(self.login, agent=agent))

    def with_token(self, token: Path) -> Ssh:
        """The same, with that file."""
        return evolve(self, token=token)

    def link(self, *, read_only: bool, silence: float) -> Link:
        """One ssh, and one nbdkit at its other end that reads from it. What it says is kept for `refusal`."""
        lock, serve = ("-sn", "nbdkit -r -s") if read_only else ("-xn", "nbdkit -s")
        same, mine = ("", "") if read_only else self._marked()
        serves = shlex.quote(f'{same}exec {serve} file "$0"')
        remote = (
            f"p={shlex.quote(self.path)}; {_FIND_MARK}; "
            f'flock {lock} -E {_LOCKED} "$p" sh -c {serves} "$p" {mine}{shlex.quote(_holder())}; {_TELL_HOLDER}'
        )
        return Link("EXEC:sh @FOLDER@/connect", connecting(watched(self.login.kept(remote), silence, FENCED)))

    def _marked(self) -> tuple[str, str]:
        """What a shell does, under the lock, to look at the mark of an image that has one, and its words for that."""
        own = mark.kept(self.token, self.url)
        return (_SAME_MARK, f'"$m" {shlex.quote(own)} ') if own else ("", "")

    def refusal(self, said: str, status: int | None) -> Unavailable:
        """Another host has it, or what ssh and nbdkit said."""
        if status == _LOCKED:
            who = next((line for line in said.split("\n") if line.startswith(_MARK)), "")
            who = clipped(one_line(who.removeprefix(_MARK)), _MOST_SHOWN) or "another process or host"
            return Locked(
                f"{self.url} is open elsewhere: {who} has it",
                hint="wait until it closes the image; after a broken connection the lock stays until the remote sshd "
                "gives that up (ClientAliveInterval)",
            )
        if status == _TAKEN:
            return Unavailable(f"another host has opened {self.url} since", hint="wait until it closes the image")
        why = clipped(reason(said), _MOST_SHOWN) or "the connection was closed"
        return Unavailable(
            f"{self.url} is not served: {why}", hint=f"can this user read and write it there? {self._ls()}"
        )

    def hold(self, runner: Runner, *, read_only: bool) -> Seen:
        """Leave our mark, under the lock; one that an earlier connection of ours still has is waited for."""
        if read_only or self.token is None:
            return self.look(runner)
        own = mark.fresh()
        mark.keep(self.token, own)
        leave = f'{shlex.quote(_LEAVE_MARK)} sh "$m" {shlex.quote(own)}'
        seen = self._look(
            f'( flock -x -w {_UNLOCK_SECONDS} -E {_LOCKED} "$p" sh -c {leave}; {_TELL_HOLDER} ); s=$?; '
            f'[ "$s" -ne {_LOCKED} ] || exit "$s"; [ "$s" -eq 0 ] || exit {_UNMARKED}; ',
            runner,
        )
        if seen.length is None:
            mark.keep(self.token, "")
        return seen

    def let_go(self, runner: Runner) -> None:
        """The lock has gone with its connection; our mark stays there until somebody else opens the image."""
        mark.drop(self.token)

    def look(self, runner: Runner) -> Seen:
        """All in one connection: the tools, the machine's boot, the file system, the image, who has opened it last."""
        return self._look("", runner)

    def _look(self, before: str, runner: Runner) -> Seen:
        """*before*: a script that comes first where there is an image."""
        script = (
            f'for t in {" ".join(_NEEDED)}; do command -v "$t" >/dev/null || {{ echo "$t"; exit {_LACKING}; }}; done; '
            "{ cat /proc/sys/kernel/random/boot_id || sysctl -n kern.boottime; } 2>/dev/null || exit 1; "
            f'd=$(dirname -- "$p"); [ -d "$d" ] || exit {_ABSENT}; stat -f -c "%a %b %S" -- "$d" || exit 1; '
            f'[ -e "$p" ] || exit 0; {_FIND_MARK}; {before}'
            'stat -L -c "%i %s %b" -- "$p" || exit 1; head -n 1 -- "$m" 2>/dev/null || true'
        )
        return self._seen(self._run(script, runner, looks=True).out.split("\n"))

    def _seen(self, lines: list[str]) -> Seen:
        """What the script of `_look` has said. Raises `Unavailable`."""
        try:
            free, total, block = map(int, lines[1].split(" "))
            seen = Seen(None, 0, free * block, total * block, lines[0])
            if len(lines) > 2 and lines[2]:
                inode, length, blocks = map(int, lines[2].split(" "))
                identity = " ".join((lines[0], str(inode), *(line[: mark.MOST] for line in lines[3:4] if line)))
                seen = evolve(seen, length=length, allocated=blocks * 512, identity=identity)
        except (ValueError, IndexError) as error:
            raise Unavailable(
                f"{self.login.host} gave an answer that lukshook does not understand",
                hint=f"does it say more than nothing? {self.login.by_hand('true')}",
            ) from error
        return seen

    def unfinished(self) -> Ssh:
        """As on a local store: the name begins with a dot. It gets no mark, nobody else knows it."""
        folder, _, name = self.path.rpartition("/")
        return evolve(self, path=f"{folder}/.{name}.lukshook-new", token=None)

    def create(self, length: int, fill: str, runner: Runner) -> None:
        """Make the image; one that is there stays."""
        fresh = f'umask 077; n={length}; (set -C; : >"$p") || exit {_THERE}'
        make = f'{fresh}; {_CREATE[fill]} || {{ rm -f -- "$p"; exit 1; }}'
        self._run(make, runner, seconds=_ALLOCATE_SECONDS, what=f"reserve {size.show(length)} at")

    def publish(self, runner: Runner) -> None:
        """By a rename that never replaces another file; mv(1) is silent where it did not, so we look.

        The mark at an image that was there before goes.
        """
        new = shlex.quote(self.unfinished().path)
        moved = f'mv --no-clobber --no-target-directory -- {new} "$p" && [ ! -e {new} ]'
        clear = f'[ -e "$p" ] || {{ {_FIND_MARK}; rm -f -- "$m"; }}'
        self._run(f'{clear}; {moved} || exit {_THERE}; sync -f -- "$p"', runner, what="name")

    def remove(self, runner: Runner) -> None:
        """Remove the image."""
        self._run('rm -f -- "$p"', runner, what="remove")

    def resize(self, length: int, fill: str, runner: Runner) -> None:
        """Cut it, or give it more, reserved where a new image would be; when that fails it has its old length.

        Under the lock, and only if nobody else has opened it since: no connection of ours keeps others out meanwhile.
        """
        reserve = "" if fill == "sparse" else f'[ {length} -lt "$o" ] || fallocate --length {length} -- "$0" && '
        same, mine = self._marked()
        cut = (
            f'{same}o=$(stat -L -c %s -- "$0") || exit 1; '
            f'{{ {reserve}truncate --no-create --size={length} -- "$0"; }} && sync -- "$0" || '
            '{ truncate --no-create --size="$o" -- "$0"; exit 1; }'
        )
        script = (
            f'stat -L -- "$p" >/dev/null || exit 1; {_FIND_MARK}; flock -x -w {_UNLOCK_SECONDS} -E {_LOCKED} "$p" '
            f'sh -c {shlex.quote(cut)} "$p" {mine}{shlex.quote(_holder())}; {_TELL_HOLDER}'
        )
        self._run(script, runner, seconds=_ALLOCATE_SECONDS, what="change the size of")

    @contextmanager
    def replica(self, runner: Runner, *, writable: bool) -> Iterator[SftpTarget]:
        """Files beside each other. Their server holds the lock on the copy; before the first, that on the folder."""
        by_shell = ByShell(self._serving_files(lock=writable), f"{_GREETING}\n".encode(), self._no_files)
        with session(self.login, runner, by_shell=by_shell) as sftp:
            yield _Files(sftp, self)

    def _serving_files(self, *, lock: bool) -> str:
        script = (
            f'p={shlex.quote(self.path)}; for s in {" ".join(SFTP_SERVERS)} ""; do [ ! -x "$s" ] || break; done; '
            f'[ -n "$s" ] || {{ echo sftp-server >&2; exit {_LACKING}; }}; '
        )
        plain = f'exec sh -c {shlex.quote(_SERVE_FILES)} "$s"'
        if not lock:
            return script + plain
        return (
            f"{script}command -v flock >/dev/null || {{ echo flock >&2; exit {_LACKING}; }}; "
            f"{_LOCK_FOLDER.format(locked=_LOCKED, serves=plain)}"
            f'flock -x -w {_UNLOCK_SECONDS} -E {_LOCKED} "$p" '
            f'sh -c {shlex.quote(_SERVE_FILES)} "$s" {shlex.quote(_holder())}"$w"; {_TELL_HOLDER}'
        )

    def _no_files(self, status: int | None, said: str) -> LukshookError:
        """Why the shell there has started no SFTP server."""
        if status in (_LOCKED, _LACKING):
            return self._failure(Result(status, said, said), "")
        return Unavailable(
            f"{self.login.host} has no shell that starts an SFTP server for {self.url}",
            hint=f"use sftp:// in place of ssh://; or does this print its own word alone? "
            f"{self.login.by_hand('echo yes')}",
        )

    def unmarked(self, why: str) -> Unavailable:
        """Our mark could not be left there."""
        return Unavailable(
            f"{self.login.host} could not note beside {self.url} who has it open: {why}",
            hint=f"let this user write in the folder of the image, and free a few KiB there: {self._ls()}",
        )

    def _ls(self) -> str:
        return self.login.by_hand(f"ls -l {shlex.quote(self.path)}")

    def _run(
        self, script: str, runner: Runner, *, looks: bool = False, seconds: float = _SECONDS, what: str = ""
    ) -> Result:
        with own_words() as (own, own_text):
            argv = self.login.shell(f"p={shlex.quote(self.path)}; {script}", own)
            every = range(256)
            command = read(*argv, ok=every, timeout=seconds) if looks else change(*argv, ok=every, timeout=seconds)
            result = runner.run(evolve(command, environment=self.login.environment))
            if result.code == OF_SSH:
                raise self.login.unreached(own_text(), result.reason)
        if result.code:
            raise self._failure(result, what)
        return result

    def _failure(self, result: Result, what: str) -> LukshookError:
        if result.code == _LACKING:
            tool = next((tool for tool in _PACKAGES if result.out.startswith(tool)), "tool that is needed")
            package = _PACKAGES.get(tool, tool)
            return Unavailable(f"{self.login.host} has no {tool}", hint=f"install it there: apt install {package}")
        if result.code in (_LOCKED, _TAKEN):
            return self.refusal(result.err, result.code)
        if result.code == _UNMARKED:
            return self.unmarked(result.reason)
        if result.code == _ABSENT:
            return Unavailable(f"the folder of {self.url} is not there", hint="is its disk mounted there?")
        if result.code == _THERE:
            return Exists(f"the image {self.url} already exists", hint="move it away, or name another one")
        return Unavailable(
            f"{self.login.host} could not {what or 'look at'} {self.url}: {result.reason}", hint=self._ls()
        )


class _Files(SftpTarget):
    """Files beside each other, the copy of *store* among them. A host may have had that open as its image."""

    def __init__(self, sftp: Sftp, store: Ssh) -> None:
        super().__init__(sftp, store.path, store.url)
        self._store = store

    def claim(self) -> None:
        """Put our mark in the place of that host's; where there is none, nobody comes back."""
        own = f"{mark.fresh()}\n".encode()
        try:
            with closing(self.open(f".{self.name}{_MARKED}", writable=True)) as file:
                file.write(0, own)
                file.resize(len(own))
                file.sync()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._store.unmarked(error.strerror or str(error)) from error


def _holder() -> str:
    """What the process that holds the lock is called there."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return f"{_MARK}host {os.uname().nodename} (process {os.getpid()}, since {now})"


def parse(parts: Parts) -> Ssh:
    """The image that a URL names. Raises ValueError."""
    return Ssh(parts.url, Login.of(parts), path_of(parts))
