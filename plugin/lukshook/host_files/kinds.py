"""What reads the files of which tool; where those are, its host.toml says."""

from __future__ import annotations

from lukshook.host_files import autorestic, borgmatic, resticprofile, rsnapshot, rustic, scripts
from lukshook.host_files.job import Jobs

#: What every other kind may be wrapped by, and where such files are.
SCRIPTS = "shell"
_UNITS = ("/etc/systemd/system/*.service", "/etc/systemd/system/*.service.d/*.conf", "~/.config/systemd/user/*.service")
_CRON = ("/etc/crontab", "/etc/cron.d/*", "/etc/cron.*ly/*", "/var/spool/cron/crontabs/*")
SCRIPT_FILES = ("/usr/local/sbin/*", "/usr/local/bin/*", "~/bin/*", *_CRON, *_UNITS)

KINDS: dict[str, Jobs] = {
    "borgmatic": borgmatic.jobs,
    "rsnapshot": rsnapshot.jobs,
    "resticprofile": resticprofile.jobs,
    "autorestic": autorestic.jobs,
    "rustic": rustic.jobs,
    SCRIPTS: scripts.jobs,
}
