"""An image behind a slow line: each remote kind beside sshfs, gocryptfs over sshfs, borg over ssh, and plain NBD.

Round trips are counted too, one after the other. They depend on what else the machine does much less than seconds.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from measure import Sample, StepFailed, in_turns, ratios, run
from rows import Curve, Row
from slow_line import Line, Traffic, slow
from ways import MIB, Gocryptfs, Lukshook, Way

from support.configuration import configuration, write_key
from support.far_host import FarHost, far_host, free_port, nbd_server

#: Round trips, and the rate of the line: 100 Mbit/s.
_MILLISECONDS, _RATE = (20, 30, 50), 12_500_000.0
_IMAGE_MIB, _WRITTEN_MIB, _FILES = 256, 96, 1000
#: The bounds hold for this line.
_JUDGED = 30
_ENGINE = 'engine = "userspace"\nold_fuse2fs = true\nfill = "sparse"'
_SSHFS, _NBD, _BORG, _GOCRYPTFS = "sshfs", "plain NBD over TCP", "borg over ssh", "gocryptfs over sshfs"


@dataclass(frozen=True)
class Far(Lukshook):
    """lukshook with an image behind *url*."""

    url: str = ""
    ssh_config: str | None = None
    options: str = field(default=_ENGINE)

    def configure(self) -> None:
        """Write key and configuration."""
        self.folder.mkdir(parents=True, exist_ok=True)
        key = self.folder / f"{self.volume}.key"
        write_key(key, os.urandom(32))
        values = {"mountpoint": self.mountpoint, "key": f"file:{key}", "size": f"{self.mib}MiB"}
        text = configuration(self.volume, image=self.url, ssh_config=self.ssh_config, **values)
        self.config.write_text(f"{text}{self.options}\n")


@dataclass(frozen=True)
class _Site:
    """The far side over the line: its *host*, where sshfs shows its store, the NBD export, how borg gets there."""

    host: FarHost
    shown: Path
    nbd: str
    spare: str
    line: Line


@dataclass(frozen=True)
class _Counted:
    """Steps, with what each of them sends over *line*, in turn, by the step's name."""

    line: Line
    found: dict[str, list[Traffic]] = field(default_factory=dict)

    def step(self, name: str, step: Callable[[], float]) -> Callable[[], float]:
        """*step*, counted."""

        def counted() -> float:
            before = self.line.traffic
            value = step()
            self.found.setdefault(name, []).append(self.line.traffic.since(before))
            return value

        return counted

    def trips(self, name: str) -> Sample:
        """Round trips of each step of that name."""
        return Sample(tuple(float(one.trips) for one in self.found[name]))

    def connections(self, name: str) -> int:
        """How many the last one of them has made."""
        return self.found[name][-1].connections


def measure(folder: Path, rounds: int, where: str) -> tuple[list[Row], list[Curve]]:
    """One line after the other."""
    missing = [tool for tool in ("sshfs", "borg", "nbdkit", "nbdcopy", "ssh") if not shutil.which(tool)]
    if missing:
        raise StepFailed(f"not installed: {', '.join(missing)}")
    rows: list[Row] = []
    for milliseconds in _MILLISECONDS:
        with _site(folder / str(milliseconds), Line(milliseconds / 1000, _RATE)) as site:
            rows += _over(folder / str(milliseconds), site, rounds, f"{where}, {milliseconds} ms")
    return rows, []


@contextmanager
def _site(folder: Path, line: Line) -> Iterator[_Site]:
    """A host behind the line."""
    with ExitStack() as stack:
        host = stack.enter_context(far_host(folder / "far", "Subsystem sftp internal-sftp\n"))
        _lead_over(host, stack.enter_context(slow(line, host.port)))
        ports = []
        for name in ("export", "spare"):
            with (host.store / name).open("wb") as file:
                file.truncate(_IMAGE_MIB * MIB)
            port = free_port()
            stack.enter_context(nbd_server(port, "file", str(host.store / name)))
            ports.append(stack.enter_context(slow(line, port)))
        shown = folder / "shown"
        shown.mkdir()
        run(["sshfs", "-F", str(host.config), f"far:{host.store}", str(shown)])
        # Lazily: gocryptfs lets go of its folder a moment after it is unmounted.
        stack.callback(lambda: run(["fusermount3", "-u", "-z", str(shown)]))
        yield _Site(host, shown, f"nbd://127.0.0.1:{ports[0]}/", f"nbd://127.0.0.1:{ports[1]}/", line)


def _lead_over(host: FarHost, port: int) -> None:
    """Have ssh go through *port*."""
    host.config.write_text(host.config.read_text().replace(f" Port {host.port}\n", f" Port {port}\n"))
    host.known.write_text(host.known.read_text().replace(f":{host.port} ", f":{port} "))


def _ways(folder: Path, site: _Site) -> list[Way]:
    ssh = str(site.host.config)
    here: list[Way] = [
        Far(folder, _IMAGE_MIB, "ssh", "ssh", url=site.host.url("ssh.img"), ssh_config=ssh),
        Far(folder, _IMAGE_MIB, "nbd", "nbd", url=site.nbd),
        Far(folder, _IMAGE_MIB, "sftp", "sftp", url=site.host.url("sftp.img", "sftp"), ssh_config=ssh),
        Far(folder, _IMAGE_MIB, _SSHFS, "sshfs", url=str(site.shown / "sshfs.img")),
    ]
    return [*here, Gocryptfs(folder, _GOCRYPTFS, site.shown)] if shutil.which("gocryptfs") else here


def _over(folder: Path, site: _Site, rounds: int, where: str) -> list[Row]:
    writes: dict[str, Callable[[], float]] = {_NBD: lambda: _plain_nbd(folder, site)}
    counted = _Counted(site.line)
    backups: dict[str, Callable[[], float]] = {_BORG: counted.step(_BORG, _borg(folder, site.host))}
    for way in _ways(folder, site):
        way.make()
        writes[way.name] = _writing(way)
        backups[way.name] = counted.step(way.name, _backing_up(folder, way))
    for step in (*writes.values(), *backups.values()):
        step()  # what is there the first time only is not measured
    counted.found.clear()
    speeds, times = in_turns(writes, rounds), in_turns(backups, rounds)
    judged = where.endswith(f" {_JUDGED} ms")
    rows = [*_write_rows(speeds, where, judged=judged), *_borg_rows(times, where, judged=judged)]
    return [*rows, *_trip_rows(counted, where)]


def _write_rows(speeds: Mapping[str, Sample], where: str, *, judged: bool) -> Iterator[Row]:
    for name in ("ssh", "nbd", "sftp", _SSHFS, _GOCRYPTFS):
        if name in speeds:
            bound = 0.9 if judged and name == "ssh" else None
            detail = f"{speeds[name].median:.1f} against {speeds[_NBD].median:.1f} MiB/s"
            ratio = ratios(speeds[name], speeds[_NBD])
            yield Row(f"sequential write, {name}", _NBD, ratio, bound, where, detail, least=True)


def _borg_rows(times: Mapping[str, Sample], where: str, *, judged: bool) -> Iterator[Row]:
    for name in ("ssh", "nbd", "sftp"):
        bound = 1.2 if judged else None
        for other in (_SSHFS, _GOCRYPTFS, _BORG):
            if other in times:
                detail = f"{times[name].show('s', 1)} against {times[other].show('s', 1)}"
                limit = bound if other == _SSHFS else None
                yield Row(
                    f"borg, 1,000 changed files, {name}", other, ratios(times[name], times[other]), limit, where, detail
                )


def _trip_rows(counted: _Counted, where: str) -> Iterator[Row]:
    for name in ("ssh", "nbd", "sftp"):
        for other in (_SSHFS, _GOCRYPTFS, _BORG):
            if other in counted.found:
                one, two = counted.trips(name), counted.trips(other)
                logins = f"in {counted.connections(name)} and {counted.connections(other)} new connections"
                detail = f"{one.median:.0f} against {two.median:.0f}, {logins}"
                yield Row(f"round trips of that backup, {name}", other, ratios(one, two), None, where, detail)


def _plain_nbd(folder: Path, site: _Site) -> float:
    """No encryption, no file system: what the line gives."""
    content = folder / "content"
    if not content.exists():
        content.write_bytes(os.urandom(_WRITTEN_MIB * MIB) + bytes((_IMAGE_MIB - _WRITTEN_MIB) * MIB))
    return _WRITTEN_MIB / run(["nbdcopy", "--flush", "--destination-is-zero", str(content), site.spare]).seconds


def _writing(way: Way) -> Callable[[], float]:
    """A large file, opened and closed outside of what is measured."""
    line = f"dd if=/dev/urandom of={way.mountpoint}/large bs=1M count={_WRITTEN_MIB} conv=fsync,notrunc"

    def step() -> float:
        run(way.open)
        try:
            return _WRITTEN_MIB / run(line).seconds
        finally:
            run(way.close)

    return step


def _change_files(source: Path) -> None:
    source.mkdir(exist_ok=True)
    for number in range(_FILES):
        (source / str(number)).write_bytes(os.urandom(4096))


def _borg(folder: Path, host: FarHost) -> Callable[[], float]:
    """borg's own encryption, and its server at the far side."""
    repository = f"ssh://far{host.store}/borg"
    settings = f"BORG_RSH='ssh -F {host.config}' BORG_PASSPHRASE=x BORG_BASE_DIR={folder}/borg"
    run(f"{settings} borg init --encryption=repokey {repository}")
    return _creating(folder, f"{settings} borg create {repository}::")


def _creating(folder: Path, command: str) -> Callable[[], float]:
    source, number = folder / "source", iter(range(10_000))

    def step() -> float:
        _change_files(source)
        return run(f"{command}{next(number)} {source}").seconds

    return step


def _backing_up(folder: Path, way: Way) -> Callable[[], float]:
    """A whole backup: opening, borg without encryption of its own, closing."""
    base = f"BORG_BASE_DIR={folder}/borg.{way.mountpoint.name} BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes"
    repository = way.mountpoint / "repository"
    run(way.open)
    run(f"{base} borg init --encryption=none {repository}")
    run(way.close)
    create = _creating(folder, f"{base} borg create {repository}::")

    def step() -> float:
        opening = run(way.open).seconds
        backup = create()
        return opening + backup + run(way.close).seconds

    return step
