"""Which files of which tool are read, and what reads them."""

from __future__ import annotations

from lukshook.host_files import autorestic, borgmatic, resticprofile, rsnapshot, rustic, scripts
from lukshook.host_files.job import Kind

#: What every other kind may be wrapped by.
SCRIPTS = "shell"
_UNITS = ("/etc/systemd/system/*.service", "/etc/systemd/system/*.service.d/*.conf", "~/.config/systemd/user/*.service")
_CRON = ("/etc/crontab", "/etc/cron.d/*", "/etc/cron.*ly/*", "/var/spool/cron/crontabs/*")
_XDG = "~/.config"

KINDS: dict[str, Kind] = {
    "borgmatic": Kind(
        (
            *("/etc/borgmatic/config.yaml", "/etc/borgmatic.d/*.yaml", "/etc/borgmatic.d/*.yml"),
            *(f"{_XDG}/borgmatic/config.yaml", f"{_XDG}/borgmatic.d/*.yaml", f"{_XDG}/borgmatic.d/*.yml"),
        ),
        borgmatic.jobs,
    ),
    "rsnapshot": Kind(("/etc/rsnapshot.conf", "/etc/rsnapshot.d/*.conf", "~/.rsnapshotrc"), rsnapshot.jobs),
    "resticprofile": Kind(
        ("/etc/resticprofile/profiles.*", f"{_XDG}/resticprofile/profiles.*", "~/resticprofile/profiles.*"),
        resticprofile.jobs,
    ),
    "autorestic": Kind(("~/.autorestic.y*ml", f"{_XDG}/autorestic/.autorestic.y*ml"), autorestic.jobs),
    "rustic": Kind(("/etc/rustic/*.toml", f"{_XDG}/rustic/*.toml"), rustic.jobs),
    SCRIPTS: Kind(("/usr/local/sbin/*", "/usr/local/bin/*", "~/bin/*", *_CRON, *_UNITS), scripts.jobs),
}
